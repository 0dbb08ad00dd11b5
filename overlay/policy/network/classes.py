"""What holds for a pod in one direction, and which pods it holds for alike.

A ``PodClass`` is everything that decides about a pod's ingress or egress: the
steps of the admin tier in order, the policies that isolate it with what they
allow together, and the steps of the baseline. Pods of one class share one
chain in the kernel, and ``decide`` reads the same values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2b
from typing import Final

from overlay.model.cluster_policy import Action, ClusterNetworkPolicy, ClusterRule, NodePeer, Tier
from overlay.model.netpol import (
    BlockPeer,
    Labels,
    NetworkPolicy,
    Peer,
    Pod,
    PodPeer,
    Rule,
    Selector,
)
from overlay.policy.network.ports import PortSet, port_set
from overlay.policy.network.scope import Scope, scope_of

_DIGEST: Final = 8  # bytes; two of a million names alike: one in 37 million


class Direction(Enum):
    """Which way a packet goes, as the pod sees it that is judged."""

    INGRESS = "ingress"
    EGRESS = "egress"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is slow


@dataclass(frozen=True, slots=True)
class Term:
    """Peers and ports that one rule names. ``name`` says which, for people.

    ``everybody`` is a rule without peers. Nodes whose labels nobody knows are
    meant by ``nodes`` with requirements where ``is_denial``: it fails closed.
    """

    name: str
    ports: PortSet
    scopes: tuple[Scope, ...] = ()
    blocks: tuple[BlockPeer, ...] = ()
    nodes: tuple[Selector, ...] = ()
    everybody: bool = False
    is_denial: bool = False

    def means_node(self, name: str, labels: Mapping[str, Labels]) -> bool:
        """Return whether it means a node; ``labels`` are those of the nodes that are known."""
        known = labels.get(name)
        return any(
            self.is_denial if known is None and each.requirements else each.selects(known or {})
            for each in self.nodes
        )


@dataclass(frozen=True, slots=True)
class Step:
    """A rule of a cluster policy: what it does with what its term matches."""

    policy: str
    action: Action
    term: Term


@dataclass(frozen=True, slots=True)
class PodClass:
    """All that decides about one direction of a pod.

    ``policies`` are those that isolate it; without any, ``allowed`` is empty
    and ``baseline`` decides. ``audited`` drops nothing but what ``admin`` does.
    """

    ident: str
    direction: Direction
    policies: tuple[tuple[str, str], ...] = ()
    allowed: tuple[Term, ...] = ()
    admin: tuple[Step, ...] = ()
    baseline: tuple[Step, ...] = ()
    audited: bool = False

    @property
    def is_open(self) -> bool:
        """Return whether nothing at all is refused, so that no chain is needed."""
        return not self.policies and not self.admin and not self.baseline

    @property
    def names_nodes(self) -> bool:
        """Return whether it depends on the addresses of nodes."""
        return any(step.term.nodes for step in (*self.admin, *self.baseline))


def digest(*words: object) -> str:
    """Return a name for nft, of hexadecimal digits, for what ``words`` say."""
    text = "\0".join(map(str, words))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).hexdigest()


@dataclass(slots=True)
class Classifier:
    """Finds the classes of pods. It remembers what it made of each policy.

    ``audited`` are the namespaces whose pods lose no packets. Give ``policies``
    and ``cluster_policies`` anew with ``use``.
    """

    audited: frozenset[str] = frozenset()
    _by_space: dict[str, dict[tuple[str, str], NetworkPolicy]] = field(default_factory=dict)
    _cluster: list[ClusterNetworkPolicy] = field(default_factory=list)
    _terms: dict[tuple[str, str, Direction], tuple[object, tuple[Term, ...]]] = field(
        default_factory=dict
    )
    _known: dict[str, tuple[tuple[object, ...], PodClass]] = field(default_factory=dict)

    def use(
        self,
        policies: Mapping[tuple[str, str], NetworkPolicy],
        cluster_policies: Iterable[ClusterNetworkPolicy] = (),
    ) -> frozenset[str]:
        """Take other policies and return the namespaces whose policies are others.

        Equal ones stay the objects that they were, and cost nothing again: who
        lists everything anew makes new objects of it.
        """
        before = {key: each for space in self._by_space.values() for key, each in space.items()}
        self._by_space = {}
        changed = {key[0] for key in before.keys() - policies.keys()}
        for key in sorted(policies):
            each, known = policies[key], before.get(key)
            if known is not None and (known is each or known == each):
                each = known
            else:
                changed.add(key[0])
            self._by_space.setdefault(key[0], {})[key] = each
        self._cluster = sorted(cluster_policies, key=lambda each: (each.priority, each.name))
        self._terms = {
            key: known
            for key, known in self._terms.items()
            if self._by_space.get(key[0], {}).get((key[0], key[1])) is known[0]
        }
        return frozenset(changed)

    def policies_of(self, pod: Pod, direction: Direction) -> list[NetworkPolicy]:
        """Return the policies that isolate a pod in a direction, by name."""
        return [
            policy
            for policy in self._by_space.get(pod.namespace, {}).values()
            if _rules(policy, direction) is not None and policy.pods.selects(pod.labels)
        ]

    def class_of(self, pod: Pod, labels: Labels, direction: Direction) -> PodClass:
        """Return the class of a pod whose namespace has ``labels``."""
        isolating = self.policies_of(pod, direction)
        chosen = [
            each
            for each in self._cluster
            if _cluster_rules(each, direction) and _is_subject(each, pod, labels)
        ]
        targets = pod.ports if direction is Direction.INGRESS else ()
        terms = [term for policy in isolating for term in self._terms_of(policy, direction)]
        steps = {
            tier: [
                Step(each.name, rule.action, cluster_term(each.name, direction, number, rule))
                for each in chosen
                if each.tier is tier
                for number, rule in enumerate(_cluster_rules(each, direction))
            ]
            for tier in Tier
        }
        names = {
            name
            for term in [*terms, *(s.term for t in Tier for s in steps[t])]
            for _, name in term.ports.names
        }
        ports = sorted((p.name, p.protocol.value, p.number) for p in targets if p.name in names)
        audited = pod.namespace in self.audited
        ident = digest(
            direction.value,
            *(f"{policy.namespace}/{policy.name}" for policy in isolating),
            *(f"/{each.name}" for each in chosen),
            ports,
            audited,
        )
        made_of: tuple[object, ...] = (*isolating, *chosen)
        known = self._known.get(ident)
        if known is not None and _same(known[0], made_of):
            return known[1]
        if direction is Direction.INGRESS:
            terms = [replace(term, ports=term.ports.resolved(targets)) for term in terms]
            for listed in steps.values():
                listed[:] = [
                    replace(s, term=replace(s.term, ports=s.term.ports.resolved(targets)))
                    for s in listed
                ]
        found = PodClass(
            ident,
            direction,
            tuple(policy.key for policy in isolating),
            tuple(terms),
            tuple(steps[Tier.ADMIN]),
            tuple(steps[Tier.BASELINE]) if not isolating else (),
            audited,
        )
        self._known[ident] = (made_of, found)
        return found

    def forget_all_but(self, idents: Iterable[str]) -> None:
        """Drop what is remembered of classes that no pod has any more."""
        kept = set(idents)
        self._known = {ident: known for ident, known in self._known.items() if ident in kept}

    def _terms_of(self, policy: NetworkPolicy, direction: Direction) -> tuple[Term, ...]:
        key = (policy.namespace, policy.name, direction)
        known = self._terms.get(key)
        if known is None or known[0] is not policy:
            rules = _rules(policy, direction) or ()
            name = f"{policy.namespace}/{policy.name} {direction.value}"
            made = tuple(
                _term(f"{name}[{number}]", rule, policy.namespace)
                for number, rule in enumerate(rules)
            )
            known = self._terms[key] = (policy, made)
        return known[1]


def cluster_term(policy: str, direction: Direction, number: int, rule: ClusterRule) -> Term:
    """Return the term of a cluster policy's rule."""
    label = f' "{rule.name}"' if rule.name else ""
    name = f"{policy} {direction.value}[{number}]{label}"
    if rule.peers is None:
        return Term(name, port_set(rule.ports), everybody=True)
    peers = rule.peers
    return Term(
        name,
        port_set(rule.ports),
        tuple(scope_of(peer, "") for peer in peers if isinstance(peer, PodPeer)),
        tuple(peer for peer in peers if isinstance(peer, BlockPeer)),
        tuple(peer.nodes for peer in peers if isinstance(peer, NodePeer)),
        is_denial=rule.action is Action.DENY,
    )


def _term(name: str, rule: Rule, namespace: str) -> Term:
    peers: tuple[Peer, ...] = rule.peers or ()
    return Term(
        name,
        port_set(rule.ports),
        tuple(scope_of(peer, namespace) for peer in peers if isinstance(peer, PodPeer)),
        tuple(peer for peer in peers if isinstance(peer, BlockPeer)),
        everybody=rule.peers is None,
    )


def _rules(policy: NetworkPolicy, direction: Direction) -> tuple[Rule, ...] | None:
    return policy.ingress if direction is Direction.INGRESS else policy.egress


def _cluster_rules(policy: ClusterNetworkPolicy, direction: Direction) -> tuple[ClusterRule, ...]:
    return policy.ingress if direction is Direction.INGRESS else policy.egress


def _is_subject(policy: ClusterNetworkPolicy, pod: Pod, labels: Labels) -> bool:
    return scope_of(policy.subject, "").selects(pod, labels)


def _same(before: tuple[object, ...], after: tuple[object, ...]) -> bool:
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))
