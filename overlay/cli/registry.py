"""Which module has which command; only those that are asked for are loaded.

All of them take a fifth of a second to import, one a third of that (2026-11).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from overlay.cli.flags import takes_value


@dataclass(frozen=True, slots=True)
class _Group:
    """A module of this package and the commands that its ``function`` adds."""

    module: str
    names: tuple[str, ...]
    function: str = "add_parser"


_GROUPS: Final = (  # in the order of --help
    _Group("network", ("network",)),
    _Group("leases", ("leases",)),
    _Group("agent", ("status", "peers", "diff"), "add_parsers"),
    _Group("mesh", ("mesh", "mtu"), "add_parsers"),
    _Group("ipam", ("ipam",)),
    _Group("explain", ("explain",)),
    _Group("capture", ("capture",)),
    _Group("policy", ("policy",)),
    _Group("policy_labels", ("pod", "namespace"), "add_parsers"),
    _Group("cni", ("cni",)),
    _Group("node", ("node",)),
    _Group("events", ("events",)),
    _Group("completion", ("completion",)),
    _Group("doctor.command", ("doctor",)),
    _Group("lab", ("lab",)),  # not in every installation
)


def add_named(commands: Any, argv: Sequence[str]) -> None:
    """Add the command that ``argv`` names, with its group; every one where it names none.

    None where only the version is asked for.
    """
    name = next(_positional(argv), None)
    if name is None and "--version" in argv:
        return
    found = [group for group in _GROUPS if name in group.names]
    _add(commands, found or _GROUPS)


def _add(commands: Any, groups: Sequence[_Group]) -> None:
    for group in groups:
        module = f"overlay.cli.{group.module}"
        if find_spec(module) is not None:
            getattr(import_module(module), group.function)(commands)


def _positional(argv: Sequence[str]) -> Iterator[str]:
    """Yield the words that are neither flags nor the values of common flags."""
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            yield word
        elif takes_value(word):
            next(words, None)
