"""What a lab test asks, what must come out, and what came out.

Pure: endpoints in, flows with their expectations out; observations in,
problems in words out.
"""

import enum
import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from overlay.model.address import Family, IPAddress
from overlay.model.egress import EgressMode


class Role(enum.Enum):
    """What an endpoint is; the value is its name in the report."""

    POD = "pod"
    NODE = "node"
    OUTSIDE = "outside"


class Outcome(enum.Enum):
    """How a probe ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # an ICMP error, a reset, or no route: the sender knows at once
    LOST = "lost"  # silence


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One side of a flow.

    ``addresses`` is what it is reached at; ``sources`` all it may send from;
    ``node`` the node that it is or stands on.
    """

    name: str
    namespace: str
    role: Role
    addresses: Mapping[Family, IPAddress]
    sources: frozenset[IPAddress]
    node: str = ""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must come out; ``largest`` is in bytes of the IP packet, None where nothing passes."""

    outcomes: frozenset[Outcome]
    sources: frozenset[IPAddress] = frozenset()
    largest: int | None = None

    def __str__(self) -> str:
        if Outcome.ANSWERED not in self.outcomes:
            return " or ".join(sorted(outcome.value for outcome in self.outcomes))
        sources = " or ".join(sorted(map(str, self.sources)))
        return f"from {sources}" + (f", {self.largest} bytes" if self.largest else "")


@dataclass(frozen=True, slots=True)
class Flow:
    """One question: how does ``source`` reach ``target`` in one family?"""

    source: Endpoint
    target: Endpoint
    family: Family
    expectation: Expectation

    @property
    def check(self) -> str:
        """Return the kind of flow, such as ``pod to node``."""
        return f"{self.source.role.value} to {self.target.role.value}"


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of one flow; ``source`` as the far end saw it, ``largest`` in bytes."""

    udp: Outcome
    tcp: Outcome
    source: IPAddress | None = None
    tcp_source: IPAddress | None = None
    largest: int | None = None
    error: int | None = None  # errno of a refusal


@dataclass(frozen=True, slots=True)
class Result:
    """A flow and what was seen of it."""

    flow: Flow
    observation: Observation

    @property
    def problems(self) -> tuple[str, ...]:
        """Return what is not as it must be, in words; empty when all is well."""
        return tuple(_problems(self.flow.expectation, self.observation))

    @property
    def is_expected(self) -> bool:
        """Return whether all is as it must be."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the row of the report as JSON values; the keys are stable."""
        seen = self.observation
        return {
            "check": self.flow.check,
            "from": self.flow.source.name,
            "to": self.flow.target.name,
            "family": self.flow.family.value,
            "target": str(self.flow.target.addresses[self.flow.family]),
            "udp": seen.udp.value,
            "tcp": seen.tcp.value,
            "error": errno.errorcode.get(seen.error) if seen.error is not None else None,
            "source": str(seen.source) if seen.source is not None else None,
            "largest_packet": seen.largest,
            "expected": str(self.flow.expectation),
            "ok": self.is_expected,
            "problems": list(self.problems),
        }


@dataclass(frozen=True, slots=True)
class Expected:
    """What the expectations of a whole lab depend on; MTUs are in bytes."""

    egress: EgressMode
    pod_mtu: int
    underlay_mtu: int


_ANSWERED: Final = frozenset({Outcome.ANSWERED})
_REFUSED: Final = frozenset({Outcome.REFUSED})
_NOT_ANSWERED: Final = frozenset({Outcome.REFUSED, Outcome.LOST})
_PAIRS: Final = (
    (Role.POD, Role.POD),
    (Role.NODE, Role.POD),
    (Role.POD, Role.NODE),
    (Role.NODE, Role.NODE),
    (Role.POD, Role.OUTSIDE),
    (Role.OUTSIDE, Role.POD),
)


def flows(
    endpoints: Sequence[Endpoint], families: Iterable[Family], expected: Expected
) -> list[Flow]:
    """Return every flow that a lab test looks at, grouped by kind."""
    by_role = {role: [e for e in endpoints if e.role is role] for role in Role}
    nodes = {node.name: node for node in by_role[Role.NODE]}
    enabled = tuple(families)
    return [
        Flow(source, target, family, _expectation(source, target, family, nodes, expected))
        for source_role, target_role in _PAIRS
        for source in by_role[source_role]
        for target in by_role[target_role]
        if source is not target
        for family in enabled
    ]


def _expectation(
    source: Endpoint,
    target: Endpoint,
    family: Family,
    nodes: Mapping[str, Endpoint],
    expected: Expected,
) -> Expectation:
    own = frozenset({source.addresses[family]})
    roles = (source.role, target.role)
    if roles == (Role.NODE, Role.NODE):
        return Expectation(_ANSWERED, own, expected.underlay_mtu)
    if roles == (Role.NODE, Role.POD):
        of_family = frozenset(a for a in source.sources if a.version == family.value)
        return Expectation(_ANSWERED, of_family, expected.pod_mtu)
    if Role.OUTSIDE not in roles or expected.egress is EgressMode.FLAT:
        return Expectation(_ANSWERED, own, expected.pod_mtu)
    if source.role is Role.OUTSIDE:
        return Expectation(_NOT_ANSWERED)
    if expected.egress is EgressMode.ISOLATED:
        return Expectation(_REFUSED)
    node = nodes[source.node].addresses[family]
    return Expectation(_ANSWERED, frozenset({node}), expected.pod_mtu)


def _problems(expectation: Expectation, seen: Observation) -> Iterable[str]:
    wanted = " or ".join(sorted(outcome.value for outcome in expectation.outcomes))
    for protocol, outcome in (("UDP", seen.udp), ("TCP", seen.tcp)):
        if outcome not in expectation.outcomes:
            why = f" ({errno.errorcode.get(seen.error, seen.error)})" if seen.error else ""
            yield f"{protocol} {outcome.value}{why}, not {wanted}"
    sources = " or ".join(sorted(map(str, expectation.sources)))
    for protocol, source in (("UDP", seen.source), ("TCP", seen.tcp_source)):
        if source is not None and sources and source not in expectation.sources:
            yield f"{protocol} seen from {source}, not {sources}"
    if Outcome.ANSWERED not in expectation.outcomes and seen.source is not None:
        yield f"arrived all the same, from {seen.source}"
    if seen.udp is Outcome.ANSWERED and expectation.largest not in (None, seen.largest):
        yield f"largest packet {seen.largest} bytes, not {expectation.largest}"
