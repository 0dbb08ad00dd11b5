"""What the policies of a world say to one flow, and which rule says it.

Read from the same classes of pods that the table is made of, for both ends of
the flow, wherever in the cluster they run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

from overlay.model.address import IPAddress
from overlay.model.cluster_policy import Action
from overlay.model.netpol import Flow, Pod, PodKey, Protocol, World
from overlay.policy.network.classes import Classifier, Direction, PodClass, Step, Term
from overlay.policy.network.compile import DEFAULTS, CompileOptions
from overlay.policy.network.ports import PortSet, Span, union
from overlay.policy.network.spans import contains

Words: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one end says. ``rules`` are those that decided, by name.

    Where nothing allows, ``policies`` are those that isolate the pod and
    ``rules`` is empty; where nothing isolates it, both are empty. What is
    refused only for the count (audit) is allowed and ``audited``.
    """

    direction: Direction
    pod: PodKey
    allowed: bool
    rules: Words = ()
    policies: Words = ()
    audited: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a flow passes, and what each end that is a pod says.

    ``because`` is set where no policy is asked: a pod to itself, a node to its
    own pods.
    """

    allowed: bool
    egress: Judgement | None = None
    ingress: Judgement | None = None
    because: str = ""


@dataclass(slots=True)
class Decider:
    """Answers for one world. It remembers what it found out, class by class and peer by peer."""

    world: World
    options: CompileOptions = DEFAULTS
    _classifier: Classifier = field(init=False)
    _owners: dict[IPAddress, list[Pod]] = field(default_factory=dict, init=False)
    _classes: dict[tuple[PodKey, Direction], PodClass] = field(default_factory=dict, init=False)
    _sides: dict[tuple[str, IPAddress], "_Side"] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._classifier = Classifier(self.options.audited)
        cluster = self.world.cluster_policies if self.options.admin_tier else {}
        self._classifier.use(self.world.policies, cluster.values())
        for _, pod in sorted(self.world.pods.items()):
            if pod.counts:
                for address in pod.addresses:
                    self._owners.setdefault(address, []).append(pod)

    def decide(self, flow: Flow) -> Decision:
        """Return what becomes of a flow."""
        return self._decided(flow.source, flow.destination, flow.protocol, flow.port)

    def allows_other(self, source: IPAddress, destination: IPAddress) -> bool:
        """Return whether a protocol without ports passes, ping for example."""
        return self._decided(source, destination, None, 0).allowed

    def _decided(
        self, source: IPAddress, destination: IPAddress, protocol: Protocol | None, port: int
    ) -> Decision:
        if because := self._exempt(source, destination):
            return Decision(allowed=True, because=because)
        egress, ingress = (
            self._judgement(direction, own, peer, protocol, port)
            for direction, own, peer in _ends(source, destination)
        )
        allowed = all(each is None or each.allowed for each in (egress, ingress))
        return Decision(allowed, egress, ingress)

    def reach(self, source: IPAddress, destination: IPAddress) -> tuple[Span, ...]:
        """Return the ports that are open from one address to another, ascending."""
        sides: list[_Side] = []
        if not self._exempt(source, destination):
            for direction, own, peer in _ends(source, destination):
                pod = self._owner(own, direction)
                if pod is not None:
                    sides.append(self._side(self.class_of(pod, direction), peer))
        spans: list[Span] = []
        for protocol in Protocol:
            edges = {0, 65536}.union(*(side.edges(protocol) for side in sides))
            for first, after in pairwise(sorted(edges)):
                if not all(side.says(protocol, first)[0] for side in sides):
                    continue
                if spans and spans[-1][0] == protocol.value and spans[-1][2] == first - 1:
                    spans[-1] = (protocol.value, spans[-1][1], after - 1)
                else:
                    spans.append((protocol.value, first, after - 1))
        return tuple(spans)

    def class_of(self, pod: Pod, direction: Direction) -> PodClass:
        """Return the class of a pod that policies are about."""
        known = self._classes.get((pod.key, direction))
        if known is None:
            labels = self.world.namespace_labels(pod.namespace)
            known = self._classifier.class_of(pod, labels, direction)
            self._classes[pod.key, direction] = known
        return known

    def _exempt(self, source: IPAddress, destination: IPAddress) -> str:
        """Return why no policy is asked; empty where they are."""
        targets = self._owners.get(destination, [])
        if any(pod is target for pod in self._owners.get(source, []) for target in targets):
            return "a pod reaches itself"
        target = self._owner(destination, Direction.INGRESS)
        if target is not None and source in self.world.nodes.get(target.node, frozenset()):
            return f"node {target.node} reaches its own pods"
        return ""

    def _owner(self, address: IPAddress, direction: Direction) -> Pod | None:
        """Return the pod of an address: of two, as in the table, the first that is isolated."""
        owners = self._owners.get(address, [])
        for pod in owners:
            if not self.class_of(pod, direction).is_open:
                return pod
        return owners[0] if owners else None

    def _judgement(
        self,
        direction: Direction,
        own: IPAddress,
        peer: IPAddress,
        protocol: Protocol | None,
        port: int,
    ) -> Judgement | None:
        pod = self._owner(own, direction)
        if pod is None:
            return None
        each = self.class_of(pod, direction)
        allowed, rules, policies = self._side(each, peer).says(protocol, port)
        is_audit = bool(policies) and allowed
        return Judgement(direction, pod.key, allowed, rules, policies, audited=is_audit)

    def _side(self, each: PodClass, peer: IPAddress) -> "_Side":
        known = self._sides.get((each.ident, peer))
        if known is None:
            known = self._sides[each.ident, peer] = _Side(
                each,
                self._steps(each.admin, peer),
                [(t, found) for t in each.allowed if (found := self._facing(t, peer))],
                self._steps(each.baseline, peer),
            )
        return known

    def _steps(self, steps: Iterable[Step], peer: IPAddress) -> list[tuple[Step, PortSet]]:
        return [(s, found) for s in steps if (found := self._facing(s.term, peer))]

    def _facing(self, term: Term, peer: IPAddress) -> PortSet | None:
        """Return the ports on which ``term`` matches ``peer``; None for nowhere."""
        found: list[PortSet] = []
        elsewhere = self._is_meant_by_address(term, peer)
        if elsewhere:
            found.append(PortSet(term.ports.spans, every=term.ports.every))
        # Names are left in terms of egress only: their targets are the peers.
        found += [
            term.ports.resolved(pod.ports)
            for pod in self._owners.get(peer, [])
            if elsewhere or self._selects(term, pod)
        ]
        return union(found) if found else None

    def _is_meant_by_address(self, term: Term, peer: IPAddress) -> bool:
        return (
            term.everybody
            or any(contains(block, peer) for block in term.blocks)
            or any(
                peer in addresses and term.means_node(name, self.world.node_labels)
                for name, addresses in self.world.nodes.items()
            )
        )

    def _selects(self, term: Term, pod: Pod) -> bool:
        labels = self.world.namespace_labels(pod.namespace)
        return any(scope.selects(pod, labels) for scope in term.scopes)


def decide(world: World, flow: Flow, options: CompileOptions = DEFAULTS) -> Decision:
    """Return what the policies of ``world`` say to ``flow``."""
    return Decider(world, options).decide(flow)


@dataclass(frozen=True, slots=True)
class _Side:
    """A class facing one peer: what of it matches that peer at all, with the ports."""

    each: PodClass
    admin: list[tuple[Step, PortSet]]
    allowed: list[tuple[Term, PortSet]]
    baseline: list[tuple[Step, PortSet]]

    def edges(self, protocol: Protocol) -> set[int]:
        """Return the ports where what it says may change."""
        return {
            edge
            for _, ports in (*self.admin, *self.allowed, *self.baseline)
            for number, first, last in ports.spans
            if number == protocol.value
            for edge in (first, last + 1)
        }

    def says(self, protocol: Protocol | None, port: int) -> tuple[bool, Words, Words]:
        """Return whether it lets pass, by which rules, and which policies refuse."""
        step, audited = _first(self.admin, protocol, port), False
        if step is None or step.action is Action.PASS:
            audited = self.each.audited
            if self.each.policies:
                names = tuple(t.name for t, ports in self.allowed if ports.holds(protocol, port))
                if names:
                    return True, names, ()
                return self.each.audited, (), tuple(map("/".join, self.each.policies))
            step = _first(self.baseline, protocol, port)
        if step is None or step.action is Action.PASS:
            return True, (), ()
        if step.action is Action.ACCEPT:
            return True, (step.term.name,), ()
        return audited, (step.term.name,), (step.policy,)


def _first(
    steps: Iterable[tuple[Step, PortSet]], protocol: Protocol | None, port: int
) -> Step | None:
    return next((step for step, ports in steps if ports.holds(protocol, port)), None)


def _ends(
    source: IPAddress, destination: IPAddress
) -> tuple[tuple[Direction, IPAddress, IPAddress], ...]:
    """Return both ends: the direction that is judged there, its own address, its peer's."""
    return (
        (Direction.EGRESS, source, destination),
        (Direction.INGRESS, destination, source),
    )
