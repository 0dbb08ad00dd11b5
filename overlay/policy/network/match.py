"""Terms as sets and rules: a fixed number of rules, whatever the number of terms.

Addresses of pods change all the time, so that theirs are sets whose elements
come and go, named by what selects them. Everything else changes with policies
only, and is named by what it holds.

What a broad selector means is one set for all who name it, and a rule says
with which ports: copied into each of 90 lists it made 900,000 elements. So
that rules stay few, a list has at most ``_SHARED`` of them, its broadest; the
rest goes into sets of the list's own.

| set | holds |
|---|---|
| ``ov_a4_``, ``ov_a6_`` | pods, on every port or on those of a rule |
| ``ov_s4_``, ``ov_s6_`` | pods, each with single ports: a hash |
| ``ov_r4_``, ``ov_r6_`` | pods, each with ranges of ports |
| ``ov_b4_``, ``ov_b6_`` | blocks of addresses, on every port |
| ``ov_c4_``, ``ov_c6_`` | blocks of addresses with ports |
| ``ov_p_`` | ports: for everybody, or for the pods of a rule |
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from overlay.model.address import IPAddress, host_network
from overlay.model.netpol import BlockPeer, Labels, PodKey
from overlay.policy.network.classes import Direction, Term, digest
from overlay.policy.network.ports import EVERY_PORT, PortSet, spelled, union
from overlay.policy.network.scope import ALL_PODS, IndexedPod, PodIndex, Scope
from overlay.policy.network.spans import ranges
from overlay.policy.network.table import PolicySet

_ADDRESS: Final = {4: "ipv4_addr", 6: "ipv6_addr"}
_IP: Final = {4: "ip", 6: "ip6"}
_SIDE: Final = {Direction.INGRESS: "saddr", Direction.EGRESS: "daddr"}
_PORTS: Final = "inet_proto . inet_service"
_WHERE: Final = "meta l4proto . th dport"
_VERSIONS: Final = (4, 6)
_SHARED: Final = 4  # rules of a list with sets that others use too, for each IP version

Entry: TypeAlias = tuple[Scope, PortSet]
Members: TypeAlias = Mapping[Scope, set[PodKey]]
Elements: TypeAlias = dict[str, set[str]]  # by a set's kind and version, such as "s4"
_Ports: TypeAlias = tuple[bool, tuple[str, ...], tuple[str, ...]]  # every, singles, ranges


@dataclass(slots=True)
class PodMatch:
    """Sets of pods' addresses with the ports of ``entries``; kept in step with a world."""

    ident: str
    entries: tuple[Entry, ...]
    sets: dict[str, PolicySet] = field(default_factory=dict)
    _spelled: dict[tuple[object, ...], _Ports] = field(default_factory=dict)

    def build(self, index: PodIndex, members: Members) -> None:
        """Make all sets anew."""
        by_pod: dict[PodKey, list[int]] = {}
        for number, (scope, _) in enumerate(self.entries):
            for key in members[scope]:
                by_pod.setdefault(key, []).append(number)
        limited = any(scope.within for scope, _ in self.entries)
        found: Elements = {f"{kind}{v}": set() for kind in self._kinds for v in _VERSIONS}
        for key, numbers in by_pod.items():
            each = index.pods[key]
            for version, address in each.addresses:
                if not limited and len(index.owners[address]) == 1:
                    _add(found, version, address, self._ports(tuple(numbers), each))
                else:
                    self._shared(found, version, address, index, members)
        self.sets = {kind: self._set(kind, frozenset(each)) for kind, each in found.items()}

    def elements(
        self, addresses: Iterable[tuple[int, str]], index: PodIndex, members: Members
    ) -> Elements:
        """Return the elements that ``addresses`` have at present."""
        found: Elements = {kind: set() for kind in self.sets}
        for version, address in addresses:
            self._shared(found, version, address, index, members)
        return found

    def change(self, before: Elements, after: Elements) -> None:
        """Exchange elements; a set whose elements stay remains the same object."""
        for kind, old in before.items():
            new = after[kind]
            if old != new:
                elements = (self.sets[kind].elements - (old - new)) | new
                self.sets[kind] = self._set(kind, elements)

    @property
    def _kinds(self) -> list[str]:
        kinds: list[str] = []
        spans = [(first, last) for _, ports in self.entries for _, first, last in ports.spans]
        if any(ports.every for _, ports in self.entries):
            kinds.append("a")
        if any(ports.names for _, ports in self.entries) or any(a == b for a, b in spans):
            kinds.append("s")
        if any(a != b for a, b in spans):
            kinds.append("r")
        return kinds

    def _set(self, kind: str, elements: frozenset[str]) -> PolicySet:
        address = _ADDRESS[int(kind[1])]
        type_ = address if kind[0] == "a" else f"{address} . {_PORTS}"
        return PolicySet(f"ov_{kind}_{self.ident}", type_, elements, interval=kind[0] == "r")

    def _shared(
        self, found: Elements, version: int, address: str, index: PodIndex, members: Members
    ) -> None:
        """Add the elements of an address, whoever has it; two may for a moment."""
        ports: list[PortSet] = []
        for key, owner in index.owners.get(address, {}).items():
            for scope, spec in self.entries:
                if key in members[scope] and scope.has(address):
                    ports.append(spec.resolved(owner.pod.ports))
        if ports:
            _add(found, version, address, _texts(union(ports)))

    def _ports(self, numbers: tuple[int, ...], each: IndexedPod) -> _Ports:
        named = any(self.entries[number][1].names for number in numbers)
        key: tuple[object, ...] = (numbers, each.pod.ports) if named else numbers
        known = self._spelled.get(key)
        if known is None:
            specs = [self.entries[number][1].resolved(each.pod.ports) for number in numbers]
            known = self._spelled[key] = _texts(union(specs))
        return known


@dataclass(frozen=True, slots=True)
class Match:
    """What a list of terms matches, in one direction."""

    side: str
    own: PodMatch | None = None
    shared: tuple[tuple[PodMatch, PolicySet | None], ...] = ()  # with ports; None: every port
    fixed: tuple[PolicySet, ...] = ()
    everything: bool = False

    @property
    def pods(self) -> list[PodMatch]:
        """Return what has sets that change with pods."""
        own = [self.own] if self.own is not None else []
        return [*own, *(each for each, _ in self.shared)]

    @property
    def sets(self) -> list[PolicySet]:
        """Return the sets that its rules name, as they are now."""
        ports = [ports for _, ports in self.shared if ports is not None]
        pods = [each for match in self.pods for each in match.sets.values()]
        return [*self.fixed, *ports, *pods]

    def lines(self, verdict: str) -> list[str]:
        """Return the rules that end in ``verdict``."""
        if self.everything:
            return [verdict]
        own = self.own.sets.values() if self.own is not None else ()
        alone = sorted([*self.fixed, *own], key=lambda each: each.name)
        return [
            *(f"{_matched(each, self.side)} @{each.name} {verdict}" for each in alone),
            *(
                f"{_matched(each, self.side)} @{each.name} "
                + (f"{_WHERE} @{ports.name} " if ports is not None else "")
                + verdict
                for match, ports in self.shared
                for each in match.sets.values()
            ),
        ]


@dataclass(slots=True)
class Blocks:
    """Sets of address blocks while nodes stay as they are.

    Those of nodes are made once for all classes that name the same nodes.
    """

    nodes: Mapping[str, frozenset[IPAddress]] = field(default_factory=dict)
    labels: Mapping[str, Labels] = field(default_factory=dict)
    _made: dict[tuple[Term, ...], list[PolicySet]] = field(default_factory=dict)

    def sets(self, terms: Sequence[Term]) -> list[PolicySet]:
        """Return the sets of what ``terms`` name by blocks, and by nodes, with their ports."""
        if not any(term.nodes for term in terms):
            return self._sets(terms)
        # By what is in a set alone: the name of a term says which policy it is of.
        key = tuple(replace(term, name="", scopes=()) for term in terms)
        if key not in self._made:
            self._made[key] = self._sets(terms)
        return self._made[key]

    def _sets(self, terms: Sequence[Term]) -> list[PolicySet]:
        blocks = [
            (block, PortSet(term.ports.spans, every=term.ports.every))
            for term in terms
            for block in (*term.blocks, *_node_blocks(term, self.nodes, self.labels))
        ]
        fixed: list[PolicySet] = []
        for version in _VERSIONS:
            found = ranges(blocks, version)
            if plain := [text for text, ports in found if ports.every]:
                fixed.append(_fixed(f"ov_b{version}_", _ADDRESS[version], plain))
            if ported := [f"{text} . {e}" for text, ports in found for e in ports.elements]:
                fixed.append(_fixed(f"ov_c{version}_", f"{_ADDRESS[version]} . {_PORTS}", ported))
        return fixed


def match_of(
    terms: Sequence[Term],
    direction: Direction,
    pods: Callable[[tuple[Entry, ...]], PodMatch],
    blocks: Blocks,
) -> Match:
    """Return what any of ``terms`` matches; ``pods`` and ``blocks`` give the sets."""
    everybody = union([PortSet(), *(term.ports for term in terms if term.everybody)])
    side = _SIDE[direction]
    if everybody.every:
        return Match(side, everything=True)
    fixed: list[PolicySet] = []
    if everybody.spans:
        fixed.append(_fixed("ov_p_", _PORTS, everybody.elements))
    fixed += blocks.sets(terms)
    shared, own = _divided(_entries(terms))
    return Match(
        side,
        pods(own) if own else None,
        tuple(_shared(listed, pods) for listed in shared),
        tuple(fixed),
    )


def entries_digest(entries: Iterable[Entry]) -> str:
    """Return the name of the sets for ``entries``."""
    return digest(*((s.text, p.every, p.spans, sorted(p.names)) for s, p in entries))


def _entries(terms: Iterable[Term]) -> tuple[Entry, ...]:
    found = dict.fromkeys(
        (scope, term.ports)
        for term in terms
        for scope in term.scopes
        if term.ports.every or term.ports.spans or term.ports.names
    )
    for term in terms:
        # What has a name for a port is a pod, also where a rule says nobody or a block.
        names = PortSet(names=term.ports.names)
        if term.everybody and term.ports.names:
            found[ALL_PODS, names] = None
        elif term.blocks and term.ports.names:
            found[replace(ALL_PODS, within=term.blocks), names] = None
    return tuple(
        sorted(found, key=lambda e: (e[0].text, e[1].every, e[1].spans, sorted(e[1].names)))
    )


def _divided(entries: tuple[Entry, ...]) -> tuple[list[tuple[Entry, ...]], tuple[Entry, ...]]:
    """Return the entries that get sets by themselves, those of a scope together, and all others.

    By what they say alone: the members of a scope change with every pod.
    """
    listed: dict[Scope, list[Entry]] = {}
    for entry in entries:
        if not entry[0].within:
            listed.setdefault(entry[0], []).append(entry)
    chosen = sorted(listed, key=lambda scope: (_narrowness(scope), scope.text))[:_SHARED]
    return (
        [tuple(listed[scope]) for scope in chosen],
        tuple(entry for entry in entries if entry[0] not in chosen),
    )


def _shared(
    entries: tuple[Entry, ...], pods: Callable[[tuple[Entry, ...]], PodMatch]
) -> tuple[PodMatch, PolicySet | None]:
    """Return the sets of one scope's entries, and the ports that a rule adds to them.

    What a name stands for is each pod's own, and lies in the set.
    """
    if any(spec.names for _, spec in entries):
        return pods(entries), None
    ports = union(spec for _, spec in entries)
    match = pods(((entries[0][0], EVERY_PORT),))
    return match, None if ports.every else _fixed("ov_p_", _PORTS, ports.elements)


def _narrowness(scope: Scope) -> tuple[bool, int]:
    """Return what is the less the more pods a scope is likely to mean."""
    spaces = scope.namespaces.requirements if scope.namespaces is not None else ()
    return scope.namespaces is None, len(spaces) + len(scope.pods.requirements)


def _node_blocks(
    term: Term,
    nodes: Mapping[str, frozenset[IPAddress]],
    labels: Mapping[str, Labels],
) -> list[BlockPeer]:
    if not term.nodes:
        return []
    return [
        BlockPeer(host_network(address))
        for name, addresses in sorted(nodes.items())
        if term.means_node(name, labels)
        for address in addresses
        if "%" not in str(address)
    ]


def _fixed(prefix: str, type_: str, elements: Iterable[str]) -> PolicySet:
    listed = frozenset(elements)
    return PolicySet(prefix + digest(*sorted(listed)), type_, listed, interval=True)


def _matched(each: PolicySet, side: str) -> str:
    if each.name.startswith("ov_p_"):
        return _WHERE
    address = f"{_IP[int(each.name[4])]} {side}"
    return address if each.name[3] in "ab" else f"{address} . {_WHERE}"


def _texts(ports: PortSet) -> _Ports:
    singles = tuple(f" . {spelled(span)}" for span in ports.spans if span[1] == span[2])
    wide = tuple(f" . {spelled(span)}" for span in ports.spans if span[1] != span[2])
    return ports.every, singles, wide


def _add(found: Elements, version: int, address: str, ports: _Ports) -> None:
    every, singles, wide = ports
    if every:
        found[f"a{version}"].add(address)
    else:
        if singles:
            found[f"s{version}"].update([address + port for port in singles])
        if wide:
            found[f"r{version}"].update([address + port for port in wide])
