"""The world that this node's policies are compiled from: what the source holds, and own pods.

Of the node's own pods the node knows better than any store: which there are
and which addresses they have. What an operator gives them comes from the store.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from overlay.agent.policy_pods import own_pods, told, told_pods
from overlay.model.address import IPAddress
from overlay.model.attachment import Attachment
from overlay.model.lease import Lease
from overlay.model.netpol import Labels, NetworkPolicy, Pod, PodKey, World
from overlay.model.policy_view import PolicyView
from overlay.model.versioned import MapHistory, changed_keys


def node_addresses(leases: Mapping[str, Lease]) -> dict[str, frozenset[IPAddress]]:
    """Return what each node sends from: its public addresses, and the first of its subnet."""
    return {lease.node: _sources(lease) for lease in leases.values() if not lease.is_vacant}


def _sources(lease: Lease) -> frozenset[IPAddress]:
    firsts = (network.network_address for network in lease.subnet.networks())
    return frozenset((*lease.attributes.public.values(), *firsts))


class NodeAddresses:
    """``node_addresses`` of one set of leases after another: a lease costs itself."""

    def __init__(self) -> None:
        self._leases: Mapping[str, Lease] = {}
        self._holders: Counter[str] = Counter()  # leases by the name of their node
        self._found: MapHistory[str, frozenset[IPAddress]] = MapHistory()

    @property
    def found(self) -> Mapping[str, frozenset[IPAddress]]:
        """Return the addresses by node; the same object while they are equal."""
        return self._found.snapshot()

    def follow(self, leases: Mapping[str, Lease]) -> None:
        """Take ``leases`` for all there is."""
        before, self._leases = self._leases, leases
        fresh: dict[str, frozenset[IPAddress] | None] = {}
        is_shared = False  # two leases of one node: which of them counts is asked of all
        for key in changed_keys(before, leases):
            for lease, change in ((before.get(key), -1), (leases.get(key), 1)):
                if lease is None or lease.is_vacant:
                    continue
                is_shared |= self._holders[lease.node] > 1
                self._holders[lease.node] += change
                is_shared |= self._holders[lease.node] > 1
                fresh[lease.node] = _sources(lease) if change > 0 else fresh.get(lease.node)
        known = self._found.snapshot()
        if is_shared:
            fresh = {**dict.fromkeys(known), **node_addresses(leases)}
        for name, sources in fresh.items():
            if sources is None:
                self._found.discard(name)
            elif known.get(name) != sources:
                self._found.put(name, sources)


@dataclass(slots=True)
class WorldMaker:
    """Makes one world after another; what did not change stays the same object."""

    node: str
    _own: dict[PodKey, Pod] = field(default_factory=dict, init=False)
    _told: Mapping[PodKey, Pod] | None = field(default=None, init=False)  # of the last view
    _pods: dict[PodKey, Pod] = field(default_factory=dict, init=False)  # of the last world
    unknown: frozenset[IPAddress] = field(default=frozenset(), init=False)

    @property
    def own_addresses(self) -> frozenset[IPAddress]:
        """Return the addresses of this node's pods in the last world."""
        return self.unknown.union(*(pod.addresses for pod in self._own.values()))

    def make(
        self,
        view: PolicyView,
        attachments: Sequence[Attachment],
        nodes: Mapping[str, frozenset[IPAddress]],
        selecting: "Selecting",
        asked: Mapping[PodKey, Pod],
    ) -> World:
        """Return the world of ``view``, with this node's pods as they are; ``nodes`` as they send.

        ``asked`` are pods that were asked for because the view had none of
        them yet. ``unknown`` is then what nobody tells of, as far as policies
        could be about it.
        """
        nobodys: dict[PodKey, frozenset[IPAddress]] = {}
        if view.knows_pods:
            fresh, nobodys = told_pods(attachments, partial(told, view, asked), self.node)
        else:
            fresh = own_pods(attachments, self.node)
        self.unknown = frozenset[IPAddress]().union(
            *(found for key, found in nobodys.items() if selecting.concerns(key[0]))
        )
        own: dict[PodKey, Pod] = {}
        for key, pod in fresh.items():
            labels = view.labels_of(key, pod.labels)
            made = pod if labels is pod.labels else replace(pod, labels=labels)
            known = self._own.get(key)
            own[key] = known if known == made else made
        if view.pods is not self._told or own != self._own:
            pods = {key: pod for key, pod in view.pods.items() if pod.node != self.node}
            self._pods = pods | own
        self._own, self._told = own, view.pods
        return World(
            self._pods,
            view.namespaces,
            view.policies,
            nodes,
            view.node_labels,
            cluster_policies=view.cluster_policies,
        )


@dataclass(slots=True)
class Selecting:
    """Which pods some policy isolates, by the policies of their namespace."""

    view: PolicyView
    admin_tier: bool = False
    is_about_nodes: bool = field(default=False, init=False)  # their addresses matter
    _by_namespace: dict[str, list[NetworkPolicy]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for policy in self.view.policies.values():
            self._by_namespace.setdefault(policy.namespace, []).append(policy)
        named = self.view.cluster_policies.values() if self.admin_tier else ()
        self.is_about_nodes = any(policy.names_nodes for policy in named)

    @property
    def is_idle(self) -> bool:
        """Return whether there is no policy at all."""
        return not self._by_namespace and not (self.admin_tier and self.view.cluster_policies)

    def concerns(self, namespace: str) -> bool:
        """Return whether a policy could select a pod of the namespace."""
        return namespace in self._by_namespace or bool(
            self.admin_tier and self.view.cluster_policies
        )

    def isolates(self, key: PodKey, labels: Labels) -> bool:
        """Return whether a policy selects the pod; with cluster policies, whether one may."""
        if self.admin_tier and self.view.cluster_policies:
            return True
        own = self.view.labels_of(key, labels)
        return any(policy.pods.selects(own) for policy in self._by_namespace.get(key[0], ()))


NOTHING: Final = PolicyView()
NOBODY: Final[Mapping[str, Lease]] = {}
