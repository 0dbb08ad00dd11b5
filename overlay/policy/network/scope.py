"""Which pods a peer means, and an index that finds them without asking every pod."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, TypeVar

from overlay.model.netpol import (
    NAME_LABEL,
    BlockPeer,
    Labels,
    Operator,
    Pod,
    PodKey,
    PodPeer,
    Selector,
    World,
)
from overlay.policy.network.spans import contains

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Scope:
    """The pods that a peer means: in namespace ``own``, or where ``namespaces`` is met.

    ``within`` narrows it to their addresses in any of these blocks: so a
    port's name beside an ``ipBlock`` finds the pods that have such a port.
    ``text`` says all of it in a fixed spelling, and is what tells two apart:
    scopes are keys, and the hash of nested selectors is made in Python.
    """

    pods: Selector = field(compare=False)
    namespaces: Selector | None = field(default=None, compare=False)
    own: str = field(default="", compare=False)
    within: tuple[BlockPeer, ...] = field(default=(), compare=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        spaces = self.own if self.namespaces is None else _spelled(self.namespaces)
        blocks = sorted([str(b.block), *map(str, b.holes)] for b in self.within)
        object.__setattr__(self, "text", json.dumps([spaces, _spelled(self.pods), blocks]))

    def selects(self, pod: Pod, labels: Labels) -> bool:
        """Return whether it means ``pod``, whose namespace has ``labels``."""
        if self.namespaces is None:
            return pod.namespace == self.own and self.pods.selects(pod.labels)
        return self.namespaces.selects(labels) and self.pods.selects(pod.labels)

    def has(self, address: str) -> bool:
        """Return whether it means a selected pod's ``address`` too."""
        if not self.within:
            return True
        value = ip_address(address)
        return any(contains(block, value) for block in self.within)


def scope_of(peer: PodPeer, namespace: str) -> Scope:
    """Return what ``peer`` means in a policy of ``namespace``."""
    return Scope(peer.pods, peer.namespaces, namespace if peer.namespaces is None else "")


def _spelled(selector: Selector) -> list[list[object]]:
    return [[r.key, r.operator.value, sorted(r.values)] for r in selector.requirements]


ALL_PODS: Final = Scope(Selector(), Selector())


@dataclass(slots=True)
class IndexedPod:
    """A pod that policies are about; ``addresses`` are (IP version, text)."""

    pod: Pod
    addresses: tuple[tuple[int, str], ...]


def indexed(pod: Pod | None) -> IndexedPod | None:
    """Return the pod with its addresses spelled; None where policies are not about it."""
    if pod is None or not pod.counts:
        return None
    ordered = sorted(pod.addresses, key=lambda address: (address.version, int(address)))
    return IndexedPod(
        pod,
        # A scope id may hold any text, and no packet has one.
        tuple((a.version, str(a)) for a in ordered if "%" not in str(a)),
    )


@dataclass(slots=True)
class PodIndex:
    """The pods of a world by key, by address, and by namespace and label."""

    namespaces: Mapping[str, Labels] = field(default_factory=dict)
    pods: dict[PodKey, IndexedPod] = field(default_factory=dict)
    owners: dict[str, dict[PodKey, IndexedPod]] = field(default_factory=dict)
    _by_space: dict[str, dict[PodKey, IndexedPod]] = field(default_factory=dict)
    _by_label: dict[tuple[str, str, str], dict[PodKey, IndexedPod]] = field(default_factory=dict)

    def put(self, key: PodKey, entry: IndexedPod | None) -> None:
        """Replace what is known under ``key``; None removes it."""
        old = self.pods.pop(key, None)
        if old is not None:
            self._by_space[key[0]].pop(key)
            for name, value in old.pod.labels.items():
                _leave(self._by_label, (key[0], name, value), key)
            for _, address in old.addresses:
                _leave(self.owners, address, key)
        if entry is None:
            return
        self.pods[key] = entry
        self._by_space.setdefault(key[0], {})[key] = entry
        for name, value in entry.pod.labels.items():
            self._by_label.setdefault((key[0], name, value), {})[key] = entry
        for _, address in entry.addresses:
            self.owners.setdefault(address, {})[key] = entry

    def labels_of(self, namespace: str) -> Labels:
        """Return the labels of a namespace, known or not."""
        return self.namespaces.get(namespace) or {NAME_LABEL: namespace}

    def members(self, scope: Scope) -> set[PodKey]:
        """Return the pods that ``scope`` means."""
        if scope.namespaces is None:
            spaces: Iterable[str] = [scope.own]
        else:
            chosen = scope.namespaces
            spaces = [name for name in self._by_space if chosen.selects(self.labels_of(name))]
        found: set[PodKey] = set()
        for space in spaces:
            candidates = self._candidates(space, scope.pods)
            found.update(
                key for key, each in candidates.items() if scope.pods.selects(each.pod.labels)
            )
        return found

    def _candidates(self, space: str, selector: Selector) -> Mapping[PodKey, IndexedPod]:
        """Return the pods of a namespace, or the fewest that one requirement leaves."""
        best: Mapping[PodKey, IndexedPod] = self._by_space.get(space, {})
        for each in selector.requirements:
            if each.operator is Operator.IN and len(each.values) == 1:
                (value,) = each.values
                narrowed = self._by_label.get((space, each.key, value), {})
                if len(narrowed) < len(best):
                    best = narrowed
        return best


def index_of(world: World) -> PodIndex:
    """Return the index of a world."""
    index = PodIndex(world.namespaces)
    for key, pod in world.pods.items():
        index.put(key, indexed(pod))
    return index


def _leave(table: dict[_Key, dict[PodKey, IndexedPod]], name: _Key, key: PodKey) -> None:
    entries = table[name]
    entries.pop(key)
    if not entries:
        del table[name]
