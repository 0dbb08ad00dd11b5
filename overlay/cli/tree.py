"""A program's commands and flags as plain values, taken from its argparse parser.

Completions and man pages are made of these, so that they say what ``--help`` says.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlay.cli.out import FORMATS
from overlay.model.event import Kind, groups

# What may stand behind a flag, where argparse itself does not check it.
_VALUES: Final = {"--output": FORMATS, "--kind": (*groups(), *map(str, Kind))}
_PATHS: Final = ("FILE", "DIR", "SOCKET")  # ends of placeholders that mean a path


@dataclass(frozen=True, slots=True)
class Word:
    """A flag (with ``names``), or an argument without a name.

    ``value`` is the placeholder of what stands behind a flag, empty where
    nothing does. A flag that is not ``is_shown`` works and is told elsewhere.
    """

    names: tuple[str, ...]
    text: str
    value: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()
    is_path: bool = False
    is_optional: bool = False
    is_many: bool = False
    is_shown: bool = True


@dataclass(frozen=True, slots=True)
class Command:
    """One command: ``words`` lead to it, the program's name first.

    It ``runs`` where it means something without a further command.
    """

    words: tuple[str, ...]
    text: str
    flags: tuple[Word, ...]
    arguments: tuple[Word, ...]
    children: tuple["Command", ...]
    epilog: str = ""
    runs: bool = True

    @property
    def name(self) -> str:
        """Return the last word."""
        return self.words[-1]

    def walk(self) -> Iterator["Command"]:
        """Yield this command and all below it, each before its own."""
        yield self
        for child in self.children:
            yield from child.walk()


def command_tree(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = (), text: str = ""
) -> Command:
    """Return what ``parser`` takes; ``words`` lead to it, ``text`` says what it does."""
    words = words or (parser.prog,)
    flags: list[Word] = []
    arguments: list[Word] = []
    children: list[Command] = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            texts = {c.dest: c.help or "" for c in action._choices_actions}  # noqa: SLF001 - as above
            children += [
                command_tree(each, (*words, name), texts.get(name, ""))
                for name, each in action.choices.items()
            ]
        elif action.option_strings:
            flags.append(_flag(action))
        else:
            arguments.append(_argument(action))
    return Command(
        words,
        parser.description or text,
        tuple(flags),
        tuple(arguments),
        tuple(children),
        parser.epilog or "",
        runs=not children or parser.get_default("run") is not None,
    )


def value_flags(root: Command) -> list[str]:
    """Return the names of all flags behind which a word must stand."""
    found = {
        name
        for command in root.walk()
        for flag in command.flags
        if flag.value and not flag.is_optional
        for name in flag.names
    }
    return sorted(found)


def _flag(action: argparse.Action) -> Word:
    names = tuple(action.option_strings)
    takes_none = action.nargs == 0
    value = "" if takes_none else _placeholder(action) or names[-1].lstrip("-").upper()
    choices = next((_VALUES[name] for name in names if name in _VALUES), _choices(action))
    return Word(
        names,
        _text(action),
        value,
        _default(action),
        choices,
        is_path=_is_path(action, value),
        is_optional=action.nargs == "?",
        is_shown=action.help != argparse.SUPPRESS,
    )


def _argument(action: argparse.Action) -> Word:
    value = _placeholder(action) or action.dest.upper()
    return Word(
        (),
        _text(action),
        value,
        _default(action),
        _choices(action),
        is_path=_is_path(action, value),
        is_optional=action.nargs in {"?", "*"},
        is_many=action.nargs in {"*", "+", argparse.REMAINDER},
    )


def _default(action: argparse.Action) -> str:
    nothing = action.default in (None, "", False, argparse.SUPPRESS) or action.default == []
    return "" if nothing or action.nargs == 0 else str(action.default)


def _placeholder(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else ""


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(map(str, action.choices)) if action.choices is not None else ()


def _is_path(action: argparse.Action, value: str) -> bool:
    return action.type is Path or value.endswith(_PATHS)


def _text(action: argparse.Action) -> str:
    if action.help is None or action.help == argparse.SUPPRESS:
        return ""
    return action.help.replace("%%", "%")
