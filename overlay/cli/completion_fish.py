"""Completion for fish (3.4 or later)."""

from overlay.cli.tree import Command, Word, value_flags

_HEAD = """\
# fish completion for {name}; made by `{name} completion fish`
function __{name}_at --description 'whether the words so far lead to a command'
    set -l place ''
    set -l flag ''
    for word in (commandline -opc)[2..-1]
        if test -n "$flag"
            set flag ''
            continue
        end
        switch $word
            case {value_flags}
                set flag $word
            case '-*'
            case '*'
                switch "$place/$word"
                    case {places}
                        set place "$place/$word"
                end
        end
    end
    test "$place" = "$argv[1]"
end
complete -c {name} -f
"""


def script(root: Command) -> str:
    """Return the script for the program ``root``."""
    commands = list(root.walk())
    places = " ".join(_quoted(_place(command)) for command in commands[1:])
    text = _HEAD.format(name=root.name, value_flags=" ".join(value_flags(root)), places=places)
    for command in commands:
        for line in _lines(command):
            condition = f"__{root.name}_at {_quoted(_place(command))}"
            text += f"complete -c {root.name} -n {_quoted(condition)} {line}\n"
    return text


def _lines(command: Command) -> list[str]:
    lines = [f"-a {child.name} -d {_quoted(child.text)}" for child in command.children]
    if not command.children and command.arguments:
        first = command.arguments[0]
        if first.choices:
            lines.append(f"-a {_quoted(' '.join(first.choices))}")
        elif first.is_path:
            lines.append("-F")
    return lines + [_flag(flag) for flag in command.flags if flag.is_shown]


def _flag(flag: Word) -> str:
    words = [f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names]
    if flag.value and not flag.is_optional:
        if flag.choices:
            words.append(f"-x -a {_quoted(' '.join(flag.choices))}")
        else:
            words.append("-r -F" if flag.is_path else "-x")
    words.append(f"-d {_quoted(flag.text)}")
    return " ".join(words)


def _place(command: Command) -> str:
    return "".join(f"/{word}" for word in command.words[1:])


def _quoted(text: str) -> str:
    """Return ``text`` in fish's single quotes, where backslash and quote alone mean something."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
