"""Completion for bash (4.4 or later), which needs nothing but bash itself."""

import shlex
from collections.abc import Iterable, Sequence

from overlay.cli.tree import Command, Word, value_flags

_HEAD = """\
# bash completion for {name}; made by `{name} completion bash`
_{name}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} place="" flag="" word i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        # bash makes three words of --flag=value.
        [[ $word == "=" ]] && continue
        if [[ -n $flag ]]; then
            flag=""
            continue
        fi
        case "$word" in
            {value_flags}) flag=$word ;;
            -*) ;;
            *)
                case "$place/$word" in
                    {places}) place=$place/$word ;;
                esac
                ;;
        esac
    done
    [[ $current == "=" ]] && current=""
    if [[ -n $flag ]]; then
        case "$place $flag" in
"""
_MIDDLE = """\
        esac
        return
    fi
    if [[ $current == -* ]]; then
        case "$place" in
"""
_WORDS = """\
        esac
        return
    fi
    case "$place" in
"""
_TAIL = """\
    esac
}}
_{name}_files() {{
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
}}
complete -F _{name} {name}
"""


def script(root: Command) -> str:
    """Return the script for the program ``root``."""
    commands = list(root.walk())
    places = [_place(command) for command in commands[1:]]
    text = _HEAD.format(
        name=root.name, value_flags="|".join(value_flags(root)), places=" | ".join(places)
    )
    text += _choices(commands)
    text += _MIDDLE
    for command in commands:
        names = [name for flag in command.flags if flag.is_shown for name in flag.names]
        text += f'            "{_place(command)}") {_offer(names)} ;;\n'
    text += _WORDS
    for command in commands:
        if command.children:
            text += f'        "{_place(command)}") {_offer(c.name for c in command.children)} ;;\n'
        elif command.arguments:
            text += f'        "{_place(command)}") {_value(command.arguments[0])} ;;\n'
    return text + _TAIL.format(name=root.name)


def _place(command: Command) -> str:
    return "".join(f"/{word}" for word in command.words[1:])


def _choices(commands: Sequence[Command]) -> str:
    """Return what each flag takes: at its command alone where another's takes something else."""
    values: dict[str, dict[str, list[str]]] = {}  # flag, value, places
    for command in commands:
        for flag in command.flags:
            if flag.value and not flag.is_optional:
                for name in flag.names:
                    places = values.setdefault(name, {}).setdefault(_value(flag), [])
                    places.append(_place(command))
    lines = {
        f"            {_patterns(name, places if len(by_value) > 1 else ())}) {value} ;;\n": None
        for name, by_value in values.items()
        for value, places in by_value.items()
    }
    return "".join(lines)


def _patterns(flag: str, places: Sequence[str]) -> str:
    return "|".join(f'"{place} {flag}"' for place in places) or f'*" {flag}"'


def _value(word: Word) -> str:
    if word.choices:
        return _offer(word.choices)
    return '_overlayctl_files "$current"' if word.is_path else ":"


def _offer(words: Iterable[str]) -> str:
    listed = shlex.quote(" ".join(words))
    return f'mapfile -t COMPREPLY < <(compgen -W {listed} -- "$current")'
