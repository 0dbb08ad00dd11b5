"""What several watches of one cluster learn about policies, joined to views.

A view that lacks a part would open what is shut or shut what is open, so none
is delivered before every part was listed. A policy that asks for labels nobody
has kept yet waits until the pods were listed with them.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from overlay.model.cluster_policy import ClusterNetworkPolicy
from overlay.model.lease import SkippedKey
from overlay.model.netpol import NetworkPolicy, Pod, PodKey
from overlay.model.policy_view import PolicyView
from overlay.store.base import StoreError
from overlay.store.kube_pod import Needs, needs_of
from overlay.store.kube_policy_kinds import NodeLabels
from overlay.store.kube_watch import Found
from overlay.store.policy_objects import Audited

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

OWN: Final = "pods of this node"
PEERS: Final = "pods of other nodes"
POLICIES: Final = "networkpolicies"
CLUSTER: Final = "clusternetworkpolicies"
NAMESPACES: Final = "namespaces"
NODES: Final = "nodes"


@dataclass(slots=True)
class _Part(Generic[T]):
    """The objects of one watch that could be read, and those that could not."""

    plural: str
    objects: dict[str, T] = field(default_factory=dict)
    skipped: dict[str, SkippedKey] = field(default_factory=dict)
    is_listed: bool = False
    error: StoreError | None = None
    _made: Any = None

    def take(self, found: Mapping[str, Found[T]], changed: frozenset[str] | None) -> None:
        """Take over what changed; after a listing, None, all of it."""
        self._made = None
        if changed is None:
            self.objects, self.skipped, self.is_listed = {}, {}, True
        for key in found if changed is None else changed:
            self.objects.pop(key, None)
            self.skipped.pop(key, None)
            each = found.get(key)
            if each is not None and each.value is not None:
                self.objects[key] = each.value
            if each is not None and each.error is not None:
                self.skipped[key] = SkippedKey(f"{self.plural} {key}", each.error)

    def by(self, key: Callable[[T], K], value: Callable[[T], V]) -> Mapping[K, V]:
        """Return the objects as a mapping of a view's: the same until something changes."""
        if self._made is None:
            self._made = MappingProxyType({key(o): value(o) for o in self.objects.values()})
        made: Mapping[K, V] = self._made
        return made


class PolicyJoin:
    """Puts views together; what watches call may come from any thread.

    ``want_peers`` is called with the lock held, when pods of other nodes are to
    be listed anew: with ``begin_peers`` as the first thing they do.
    """

    def __init__(
        self,
        deliver: Callable[[PolicyView], None],
        trouble: Callable[[StoreError | None], None],
        want_peers: Callable[[], None],
        *,
        cluster: bool,
    ) -> None:
        self._deliver, self._trouble, self._want_peers = deliver, trouble, want_peers
        self._lock = threading.RLock()
        self._own: _Part[Pod] = _Part("pods")
        self._peers: _Part[Pod] = _Part("pods")
        self._policies: _Part[NetworkPolicy] = _Part(POLICIES)
        self._cluster: _Part[ClusterNetworkPolicy] = _Part(CLUSTER, is_listed=not cluster)
        self._namespaces: _Part[Audited] = _Part(NAMESPACES)
        self._nodes: _Part[NodeLabels] = _Part(NODES, is_listed=not cluster)
        self._parts: dict[str, _Part[Any]] = {
            OWN: self._own,
            PEERS: self._peers,
            POLICIES: self._policies,
            CLUSTER: self._cluster,
            NAMESPACES: self._namespaces,
            NODES: self._nodes,
        }
        self._pods: Mapping[PodKey, Pod] | None = None  # of both parts; None once they changed
        self._needs = Needs()
        self._kept = Needs()  # what is kept of the pods that are listed, or being listed
        self._are_peers_wanted = False
        self._revision = 0
        self._told: StoreError | None = None

    def take(
        self,
        name: str,
        objects: Mapping[str, Found[Any]],
        revision: int,
        changed: frozenset[str] | None,
    ) -> None:
        """Take over what a watch delivers."""
        with self._lock:
            self._parts[name].take(objects, changed)
            if name in {OWN, PEERS}:
                self._pods = None  # else they stay the same object, and nobody compares them
            self._revision = max(self._revision, revision)
            if name in {POLICIES, CLUSTER}:
                self._look_at_needs()
            elif name == PEERS and not self._kept.covers(self._needs):
                self._list_peers()
            self._tell()

    def begin_peers(self) -> Needs:
        """Return what is to be kept of the pods that are listed now."""
        with self._lock:
            self._kept = self._needs
            return self._kept

    def fail(self, name: str, error: StoreError | None) -> None:
        """Note what keeps a watch from its objects, None once nothing does; tell it."""
        with self._lock:
            self._parts[name].error = error
            self._tell_trouble()

    def leave_out(self, name: str, reason: StoreError) -> None:
        """Do without a part that is not to be had, and name it among what cannot be read."""
        with self._lock:
            part = self._parts[name]
            skipped = {name: SkippedKey(name, str(reason))}
            if part.is_listed and part.skipped == skipped:
                return
            part.take({}, None)
            self._pods = None
            part.skipped = skipped
            self._tell()

    def view(self) -> PolicyView | None:
        """Return what is known; None before every part that is needed was listed."""
        with self._lock:
            needed = [part for name, part in self._parts.items() if name != PEERS]
            if self._has_policies:
                needed.append(self._peers)
            if not all(part.is_listed for part in needed):
                return None
            spaces = self._namespaces
            if self._pods is None:
                pods = (*self._peers.objects.values(), *self._own.objects.values())
                self._pods = MappingProxyType({pod.key: pod for pod in pods})
            return PolicyView(
                self._revision,
                self._policies.by(lambda each: each.key, lambda each: each),
                self._cluster.by(lambda each: each.name, lambda each: each),
                spaces.by(lambda e: e.namespace.name, lambda e: e.namespace.labels),
                frozenset(e.namespace.name for e in spaces.objects.values() if e.is_audited),
                self._pods,
                skipped=tuple(s for part in needed for _, s in sorted(part.skipped.items())),
                node_labels=self._nodes.by(lambda each: each.name, lambda each: each.labels),
                knows_pods=True,
            )

    @property
    def _has_policies(self) -> bool:
        return bool(self._policies.objects or self._cluster.objects)

    def _look_at_needs(self) -> None:
        if not self._has_policies:
            return  # nobody asks about any pod
        self._needs |= needs_of(self._policies.objects.values(), self._cluster.objects.values())
        if not self._are_peers_wanted or not self._kept.covers(self._needs):
            self._list_peers()

    def _list_peers(self) -> None:
        self._are_peers_wanted, self._peers.is_listed = True, False
        self._want_peers()

    def _tell(self) -> None:
        found = self.view()
        if found is not None:
            self._deliver(found)

    def _tell_trouble(self) -> None:
        first = next((p.error for p in self._parts.values() if p.error is not None), None)
        if first is not self._told:
            self._told = first
            self._trouble(first)
