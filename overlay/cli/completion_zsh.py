"""Completion for zsh (5.3 or later), by its own ``_arguments`` and ``_describe``."""

from overlay.cli.tree import Command, Word

_TAIL = """\
# As a file on $fpath it is the function itself; where it is sourced it says so.
if [[ $funcstack[1] == _{name} ]]; then
    _{name} "$@"
else
    compdef _{name} {name}
fi
"""


def script(root: Command) -> str:
    """Return the script for the program ``root``."""
    head = f"#compdef {root.name}\n# made by `{root.name} completion zsh`\n"
    functions = "".join(_function(command) for command in root.walk())
    return head + functions + _TAIL.format(name=root.name)


def _function(command: Command) -> str:
    specs = [_flag(flag) for flag in command.flags if flag.is_shown]
    if command.children:
        # "(-)": what stands behind the command is the command's, options too.
        specs += ["'(-)1: :->command'", "'(-)*:: :->rest'"]
    else:
        specs += [_argument(argument) for argument in command.arguments]
    lines = " \\\n        ".join(specs)
    text = (
        f"{_name(command)}() {{\n"
        "    local context state state_descr line ret=1\n"
        "    typeset -A opt_args\n"
        f"    _arguments -C {lines} && ret=0\n"
    )
    if command.children:
        text += _children(command)
    return text + "    return ret\n}\n"


def _children(command: Command) -> str:
    offers = " ".join(f"'{_quoted(c.name, c.text)}'" for c in command.children)
    cases = "".join(
        f"                {child.name}) {_name(child)} && ret=0 ;;\n" for child in command.children
    )
    return (
        "    case $state in\n"
        "        command)\n"
        f"            local -a offers=({offers})\n"
        "            _describe command offers && ret=0\n"
        "            ;;\n"
        "        rest)\n"
        "            case $line[1] in\n"
        f"{cases}"
        "            esac\n"
        "            ;;\n"
        "    esac\n"
    )


def _name(command: Command) -> str:
    return "_" + "_".join(word.replace("-", "_") for word in command.words)


def _flag(flag: Word) -> str:
    value = f":{flag.value}:{_value(flag)}" if flag.value else ""
    if flag.is_optional:
        value = f":{value}"
    names = flag.names
    text = f"[{_escaped(flag.text)}]"
    if len(names) == 1:
        return f"'{names[0]}{text}{value}'"
    return f"'({' '.join(names)})'{{{','.join(names)}}}'{text}{value}'"


def _argument(argument: Word) -> str:
    place = "*" if argument.is_many else ""
    colons = "::" if argument.is_optional and not argument.is_many else ":"
    return f"'{place}{colons}{_escaped(argument.value)}:{_value(argument)}'"


def _value(word: Word) -> str:
    if word.choices:
        return f"({' '.join(word.choices)})"
    return "_files" if word.is_path else " "


def _quoted(name: str, text: str) -> str:
    return f"{name}:{_escaped(text)}"


def _escaped(text: str) -> str:
    for character in "\\[]:":
        text = text.replace(character, f"\\{character}")
    return text.replace("'", "'\\''")
