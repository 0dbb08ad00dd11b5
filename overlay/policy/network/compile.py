"""Policies, pods and namespaces to the table of one node; a change costs what it touches.

``compile_policies`` depends on its arguments alone. A ``PolicyCompiler`` that
has seen any worlds before gives the same table for the last one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from overlay.model.address import IPAddress
from overlay.model.netpol import Pod, PodKey, World
from overlay.policy.network.classes import Classifier, Direction, PodClass
from overlay.policy.network.members import Membership
from overlay.policy.network.render import (
    UNKNOWN,
    LogOptions,
    RenderedClass,
    hooks,
    refuse,
    render_class,
    self_sets,
    verdict_maps,
)
from overlay.policy.network.scope import indexed
from overlay.policy.network.table import Denial, PolicyRuleset, PolicySet

_UNKNOWN_CHAIN: Final = "ov_unknown"
_VERSIONS: Final = (4, 6)


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What is decided elsewhere than in policies.

    ``audited`` are namespaces whose pods lose no packets: what policies refuse
    there is counted and logged. ``admin_tier`` turns cluster policies on.
    """

    audited: frozenset[str] = frozenset()
    admin_tier: bool = False
    log: LogOptions | None = None


DEFAULTS: Final = CompileOptions()


def compile_policies(
    world: World,
    node: str,
    options: CompileOptions = DEFAULTS,
    unknown: frozenset[IPAddress] = frozenset(),
) -> PolicyRuleset:
    """Return the table of ``node``; see ``PolicyCompiler.update``."""
    return PolicyCompiler(node, options).update(world, unknown)


@dataclass(slots=True)
class PolicyCompiler:
    """Compiles one world after another for one node. Not for several threads at once."""

    node: str
    options: CompileOptions = DEFAULTS
    _world: World = field(default_factory=World, init=False)
    _classifier: Classifier = field(init=False)
    _membership: Membership = field(default_factory=Membership, init=False)
    _local: dict[PodKey, tuple[PodClass, PodClass]] = field(default_factory=dict, init=False)
    _rendered: dict[str, tuple[PodClass, RenderedClass]] = field(default_factory=dict, init=False)
    _is_midway: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._classifier = Classifier(self.options.audited)

    def update(self, world: World, unknown: frozenset[IPAddress] = frozenset()) -> PolicyRuleset:
        """Return the table for ``world``. Values that stay the same objects cost nothing again.

        ``unknown`` are addresses of this node whose pods nobody has told of
        yet: they reach nobody and nobody but the node reaches them, whatever
        ``world`` says of the address.
        """
        if self._is_midway:
            self._begin_anew()
        self._is_midway = True
        changes = self._membership.changes(world)
        self._membership.apply(world, changes)
        stale = self._stale(world, set(changes.pods))
        self._world = world
        for key in sorted(stale):
            pod = world.pods.get(key)
            if pod is None or pod.node != self.node or indexed(pod) is None:
                self._local.pop(key, None)
            else:
                labels = world.namespace_labels(pod.namespace)
                self._local[key] = (
                    self._classifier.class_of(pod, labels, Direction.EGRESS),
                    self._classifier.class_of(pod, labels, Direction.INGRESS),
                )
        self._render(nodes_changed=changes.nodes)
        found = self._assembled(unknown)
        self._is_midway = False
        return found

    def _begin_anew(self) -> None:
        """Forget everything: an error left some of it in step with one world, some with another."""
        self._world, self._membership = World(), Membership()
        self._classifier = Classifier(self.options.audited)
        self._local, self._rendered = {}, {}

    def _stale(self, world: World, changed: set[PodKey]) -> set[PodKey]:
        """Return the pods whose class may be another, of this node or not."""
        before = self._world
        cluster = world.cluster_policies if self.options.admin_tier else {}
        known = before.cluster_policies if self.options.admin_tier else {}
        same_cluster = cluster is known or cluster == known
        spaces: frozenset[str] = frozenset()
        if world.policies is not before.policies or not same_cluster:
            spaces = self._classifier.use(world.policies, cluster.values())
        stale = {key for key in changed if self._is_local(key, world) or key in self._local}
        for key in self._local:
            if not same_cluster or key[0] in spaces:
                stale.add(key)
        return stale

    def _is_local(self, key: PodKey, world: World) -> bool:
        pod: Pod | None = world.pods.get(key)
        return pod is not None and pod.node == self.node

    def _render(self, *, nodes_changed: bool) -> None:
        classes = {
            each.ident: each for pair in self._local.values() for each in pair if not each.is_open
        }
        self._classifier.forget_all_but(
            each.ident for pair in self._local.values() for each in pair
        )
        rendered: dict[str, tuple[PodClass, RenderedClass]] = {}
        for ident, each in classes.items():
            known = self._rendered.get(ident)
            if known is None or known[0] is not each or (nodes_changed and each.names_nodes):
                made = render_class(each, self._membership.match, self.options.log)
                known = (each, made)
            rendered[ident] = known
        self._rendered = rendered
        self._membership.keep(match for _, made in rendered.values() for match in made.matches)

    def _assembled(self, unknown: frozenset[IPAddress]) -> PolicyRuleset:
        sets: dict[str, PolicySet] = {}
        chains: dict[str, tuple[str, ...]] = {}
        denials: dict[str, Denial] = {}
        for _, made in self._rendered.values():
            chains.update(made.chains)
            denials.update({denial.ident: denial for denial in made.denials})
            for match in made.matches:
                sets.update({each.name: each for each in match.sets})
        verdicts: dict[tuple[Direction, int], dict[str, str]] = {
            (direction, version): {} for direction in Direction for version in _VERSIONS
        }
        pairs: dict[int, set[str]] = {version: set() for version in _VERSIONS}
        for key in sorted(self._local):
            addresses = self._membership.index.pods[key].addresses
            for each in self._local[key]:
                if each.is_open:
                    continue
                for version, address in addresses:
                    # Two pods have one address while an old one's object lingers: the first
                    # that is isolated decides.
                    verdicts[each.direction, version].setdefault(address, f"ov_c_{each.ident}")
                    pairs[version].update(
                        f"{address} . {other}" for v, other in addresses if v == version
                    )
        for lonely in unknown:
            address = str(lonely)
            if "%" not in address:
                for direction in Direction:
                    verdicts[direction, lonely.version][address] = _UNKNOWN_CHAIN
        if unknown:
            denials[UNKNOWN.ident] = UNKNOWN
            chains[_UNKNOWN_CHAIN] = tuple(refuse(UNKNOWN, self.options.log))
        sets.update(self_sets({version: frozenset(each) for version, each in pairs.items()}))
        return PolicyRuleset(sets, verdict_maps(verdicts), chains, hooks(), denials)


def denials_by_policy(ruleset: PolicyRuleset) -> Mapping[str, tuple[Denial, ...]]:
    """Return, for each policy, the denials that its count of refused packets is the sum of.

    A packet that several policies refuse together counts for each of them.
    """
    found: dict[str, list[Denial]] = {}
    for _, denial in sorted(ruleset.denials.items()):
        for policy in denial.policies:
            found.setdefault(policy, []).append(denial)
    return {policy: tuple(listed) for policy, listed in found.items()}
