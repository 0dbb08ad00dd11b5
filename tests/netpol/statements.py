"""What a case expects, as statements, and the truth table that follows from them.

``SOURCE -> TARGET open|closed [on PORTS] [over v4|v6]``, such as
``y/* -> x/a open on tcp/80 udp/80 over v4``. Everything is open to begin with,
a later statement stands over an earlier one, and whoever calls itself is
always answered. ``*`` are the nine pods, ``n1`` to ``n3`` the nodes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from overlay.model.netpol import Protocol

PODS: Final = tuple(f"{namespace}/{pod}" for namespace in "xyz" for pod in "abc")
NODES: Final = ("n1", "n2", "n3")
PORTS: Final = tuple((protocol, port) for protocol in Protocol for port in (80, 81))

_STATEMENT: Final = re.compile(
    r"(?P<source>\S+) -> (?P<target>\S+) (?P<word>open|closed)"
    r"(?: on (?P<ports>[a-z0-9/ ]+?))?(?: over v(?P<version>[46]))?\Z"
)


@dataclass(frozen=True, slots=True, order=True)
class Probe:
    """One question: does ``source`` reach ``target`` there? The names are a table's."""

    source: str
    target: str
    version: int
    protocol: str  # tcp | udp | sctp
    port: int

    def __str__(self) -> str:
        where = f"{self.protocol}/{self.port} over v{self.version}"
        return f"{self.source} -> {self.target} {where}"


Truth: TypeAlias = Mapping[Probe, bool]


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of what is expected."""

    source: str
    target: str
    is_open: bool
    ports: frozenset[tuple[str, int]]  # none for all
    version: int | None

    def is_about(self, probe: Probe) -> bool:
        """Return whether it says something of ``probe``."""
        return (
            _names(self.source, probe.source)
            and _names(self.target, probe.target)
            and (not self.ports or (probe.protocol, probe.port) in self.ports)
            and self.version in (None, probe.version)
        )

    def turned(self) -> "Statement":
        """Return the same of the other direction."""
        return Statement(self.target, self.source, self.is_open, self.ports, self.version)


def parse(line: str) -> Statement:
    """Return one line as a value. Raises ValueError for one that is none."""
    found = _STATEMENT.match(line)
    if found is None:
        msg = f"no statement: {line!r}"
        raise ValueError(msg)
    ports = set()
    for word in (found["ports"] or "").split():
        protocol, _, port = word.partition("/")
        ports.add((protocol, int(port)))
    unknown = ports - {(protocol.name.lower(), port) for protocol, port in PORTS}
    if unknown:
        msg = f"no port of ours in {line!r}: {sorted(unknown)}"
        raise ValueError(msg)
    version = found["version"]
    return Statement(
        found["source"],
        found["target"],
        found["word"] == "open",
        frozenset(ports),
        int(version) if version else None,
    )


def truth(statements: Sequence[Statement], callers: Iterable[str], called: Iterable[str]) -> Truth:
    """Return the answer to every question between ``callers`` and ``called``."""
    targets = list(called)
    return {
        probe: _answer(statements, probe)
        for source in callers
        for target in targets
        for protocol, port in PORTS
        for version in (4, 6)
        for probe in (Probe(source, target, version, protocol.name.lower(), port),)
    }


def drawn(answers: Truth) -> str:
    """Return the table as text: a row a caller, a column a target.

    ``.`` is all open, ``X`` all closed, ``o`` open for some ports or one family.
    """
    sources = sorted({probe.source for probe in answers}, key=_place)
    targets = sorted({probe.target for probe in answers}, key=_place)
    cells: dict[tuple[str, str], set[bool]] = {}
    for probe, is_open in answers.items():
        cells.setdefault((probe.source, probe.target), set()).add(is_open)
    signs = {frozenset({True}): ".", frozenset({False}): "X", frozenset({True, False}): "o"}
    lines = ["     " + " ".join(f"{target:>3}" for target in targets)]
    for source in sources:
        row = [signs.get(frozenset(cells.get((source, target), ())), " ") for target in targets]
        lines.append(f"{source:<4} " + " ".join(f"{sign:>3}" for sign in row))
    return "\n".join(lines)


def _answer(statements: Sequence[Statement], probe: Probe) -> bool:
    if probe.source == probe.target:
        return True
    is_open = True
    for statement in statements:
        if statement.is_about(probe):
            is_open = statement.is_open
    return is_open


def _names(pattern: str, name: str) -> bool:
    """Return whether ``pattern`` is about ``name``; a star stands for pods, never for nodes."""
    if pattern == "*":
        return "/" in name
    return fnmatchcase(name, pattern)


def _place(name: str) -> tuple[bool, str]:
    return "/" not in name, name
