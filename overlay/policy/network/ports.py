"""Sets of ports: what ``ports`` of a rule says, in a form that adds up.

Two rules for one peer add up to one set without overlaps, which is what a
set of intervals in the kernel takes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from overlay.model.cluster_policy import ClusterPort, NamedPortMatch
from overlay.model.netpol import NamedPort, PortMatch, Protocol

_FIRST_PORT, _LAST_PORT = 0, 65535
_WORD: Final = {number: name.lower() for name, number in ((p.name, p.value) for p in Protocol)}

Span: TypeAlias = tuple[int, int, int]  # IP protocol number, first and last port
PortName: TypeAlias = tuple[int, str]  # IP protocol number, 0 for any; a container port's name


@dataclass(frozen=True, slots=True)
class PortSet:
    """Ports of protocols. ``every`` is all traffic, of any protocol, and has no spans.

    ``spans`` are sorted and do not overlap. ``names`` stand for nothing until
    a target has ``resolved`` them.
    """

    spans: tuple[Span, ...] = ()
    names: frozenset[PortName] = frozenset()
    every: bool = False

    def resolved(self, ports: Iterable[NamedPort]) -> "PortSet":
        """Return the set with the numbers that ``ports`` has for its names.

        A name that the target does not have matches nothing.
        """
        if not self.names:
            return self
        spans = [
            (port.protocol.value, port.number, port.number)
            for port in ports
            if (port.protocol.value, port.name) in self.names or (0, port.name) in self.names
        ]
        return PortSet(_merged([*self.spans, *spans]))

    def holds(self, protocol: Protocol | None, port: int) -> bool:
        """Return whether a port is in it, names left aside; None is a protocol without ports."""
        return self.every or any(
            protocol is not None and number == protocol.value and first <= port <= last
            for number, first, last in self.spans
        )

    @property
    def elements(self) -> tuple[str, ...]:
        """Return the spans as elements of the type ``inet_proto . inet_service``."""
        return tuple(spelled(span) for span in self.spans)


EVERY_PORT: Final = PortSet(every=True)


def port_set(ports: Iterable[ClusterPort] | None) -> PortSet:
    """Return the set of what a rule lists; None lists everything."""
    if ports is None:
        return EVERY_PORT
    spans: list[Span] = []
    names: set[PortName] = set()
    for each in ports:
        match each:
            case NamedPortMatch(name):
                names.add((0, name))
            case PortMatch(protocol, None):
                spans.append((protocol.value, _FIRST_PORT, _LAST_PORT))
            case PortMatch(protocol, str(name)):
                names.add((protocol.value, name))
            case PortMatch(protocol, int(first), last):
                spans.append((protocol.value, first, first if last is None else last))
    return PortSet(_merged(spans), frozenset(names))


def union(sets: Iterable[PortSet]) -> PortSet:
    """Return what is in any of ``sets``."""
    listed = list(sets)
    if len(listed) == 1:
        return listed[0]
    if any(each.every for each in listed):
        return EVERY_PORT
    return PortSet(
        _merged([span for each in listed for span in each.spans]),
        frozenset(name for each in listed for name in each.names),
    )


def spelled(span: Span) -> str:
    """Return a span as an element.

    >>> spelled((6, 80, 80)), spelled((17, 1000, 2000))
    ('tcp . 80', 'udp . 1000-2000')
    """
    protocol, first, last = span
    return f"{_WORD[protocol]} . {first}" + (f"-{last}" if last != first else "")


def _merged(spans: list[Span]) -> tuple[Span, ...]:
    """Return ``spans`` sorted, those that overlap as one. Neighbors stay: a hash takes them."""
    merged: list[Span] = []
    for protocol, first, last in sorted(spans):
        if merged and merged[-1][0] == protocol and first <= merged[-1][2]:
            merged[-1] = (protocol, merged[-1][1], max(last, merged[-1][2]))
        else:
            merged.append((protocol, first, last))
    return tuple(merged)
