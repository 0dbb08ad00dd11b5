"""What the policies of a world say to one flow, and which rule says it.

Read from the same classes of pods that the table is made of, for both ends of
the flow, wherever in the cluster they run.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from overlay.model.address import IPAddress
from overlay.model.cluster_policy import Action
from overlay.model.netpol import Flow, Pod, PodKey, Protocol, World
from overlay.policy.network.classes import Classifier, Direction, PodClass, Step, Term
from overlay.policy.network.compile import DEFAULTS, CompileOptions
from overlay.policy.network.ports import Span
from overlay.policy.network.spans import contains


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
    rules: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
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
    """Answers for one world; pods are classified once."""

    world: World
    options: CompileOptions = DEFAULTS
    _classifier: Classifier = field(init=False)
    _owners: dict[IPAddress, list[Pod]] = field(default_factory=dict, init=False)
    _classes: dict[tuple[PodKey, Direction], PodClass] = field(default_factory=dict, init=False)

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
        source = self._owner(flow.source, Direction.EGRESS)
        target = self._owner(flow.destination, Direction.INGRESS)
        if source is not None and source is target:
            return Decision(allowed=True, because="a pod reaches itself")
        if target is not None and flow.source in self.world.nodes.get(target.node, frozenset()):
            return Decision(allowed=True, because=f"node {target.node} reaches its own pods")
        egress = self._judge(source, Direction.EGRESS, flow.destination, flow)
        ingress = self._judge(target, Direction.INGRESS, flow.source, flow)
        allowed = all(each is None or each.allowed for each in (egress, ingress))
        return Decision(allowed, egress, ingress)

    def reach(self, source: IPAddress, destination: IPAddress) -> tuple[Span, ...]:
        """Return the ports that are open from one address to another, ascending."""
        edges: dict[Protocol, set[int]] = {protocol: {0, 65536} for protocol in Protocol}
        for address, direction in (
            (source, Direction.EGRESS),
            (destination, Direction.INGRESS),
        ):
            pod = self._owner(address, direction)
            if pod is not None:
                for term in _terms(self.class_of(pod, direction)):
                    self._edges(term, destination, edges)
        spans: list[Span] = []
        for protocol, points in edges.items():
            ordered = sorted(points)
            for first, after in pairwise(ordered):
                if not self.decide(Flow(source, destination, protocol, first)).allowed:
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

    def _owner(self, address: IPAddress, direction: Direction) -> Pod | None:
        """Return the pod of an address: of two, as in the table, the first that is isolated."""
        owners = self._owners.get(address, [])
        for pod in owners:
            if not self.class_of(pod, direction).is_open:
                return pod
        return owners[0] if owners else None

    def _judge(
        self, pod: Pod | None, direction: Direction, peer: IPAddress, flow: Flow
    ) -> Judgement | None:
        if pod is None:
            return None
        each = self.class_of(pod, direction)
        step = self._first(each.admin, peer, flow)
        if step is None or step.action is Action.PASS:
            if each.policies:
                rules = tuple(t.name for t in each.allowed if self._matches(t, peer, flow))
                if rules:
                    return Judgement(direction, pod.key, allowed=True, rules=rules)
                names = tuple(map("/".join, each.policies))
                return Judgement(direction, pod.key, each.audited, (), names, each.audited)
            step = self._first(each.baseline, peer, flow)
        if step is None or step.action is Action.PASS:
            return Judgement(direction, pod.key, allowed=True)
        if step.action is Action.ACCEPT:
            return Judgement(direction, pod.key, allowed=True, rules=(step.term.name,))
        denied = (step.term.name,)
        return Judgement(direction, pod.key, each.audited, denied, (step.policy,), each.audited)

    def _first(self, steps: Iterable[Step], peer: IPAddress, flow: Flow) -> Step | None:
        return next((step for step in steps if self._matches(step.term, peer, flow)), None)

    def _matches(self, term: Term, peer: IPAddress, flow: Flow) -> bool:
        pods = self._owners.get(peer, [])
        if term.ports.holds(flow.protocol, flow.port) and (
            self._is_elsewhere(term, peer) or any(self._selects(term, pod) for pod in pods)
        ):
            return True
        # Names are left in terms of egress only: their targets are the peers.
        return bool(term.ports.names) and any(
            term.ports.resolved(pod.ports).holds(flow.protocol, flow.port)
            and (self._is_elsewhere(term, peer) or self._selects(term, pod))
            for pod in pods
        )

    def _is_elsewhere(self, term: Term, peer: IPAddress) -> bool:
        """Return whether a peer is meant by its address, whoever has it."""
        return (
            term.everybody
            or any(contains(block, peer) for block in term.blocks)
            or any(
                peer in addresses and selector.selects(self.world.node_labels.get(name, {}))
                for selector in term.nodes
                for name, addresses in self.world.nodes.items()
            )
        )

    def _selects(self, term: Term, pod: Pod) -> bool:
        labels = self.world.namespace_labels(pod.namespace)
        return any(scope.selects(pod, labels) for scope in term.scopes)

    def _edges(self, term: Term, destination: IPAddress, edges: dict[Protocol, set[int]]) -> None:
        """Add the ports where what a term says to ``destination`` may change."""
        resolved = [term.ports.resolved(pod.ports) for pod in self._owners.get(destination, [])]
        for ports in (term.ports, *resolved):
            for number, first, last in ports.spans:
                edges[Protocol(number)] |= {first, last + 1}


def decide(
    world: World,
    flow: Flow,
    options: CompileOptions = DEFAULTS,
) -> Decision:
    """Return what the policies of ``world`` say to ``flow``."""
    return Decider(world, options).decide(flow)


def _terms(each: PodClass) -> Iterable[Term]:
    yield from each.allowed
    for step in (*each.admin, *each.baseline):
        yield step.term
