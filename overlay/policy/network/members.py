"""Which pods are meant by the scopes in use, kept in step with one world after another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from overlay.model.netpol import Pod, PodKey, World
from overlay.model.versioned import changed_keys
from overlay.policy.network.classes import Direction, Term
from overlay.policy.network.match import (
    Blocks,
    Elements,
    Entry,
    Match,
    PodMatch,
    entries_digest,
    match_of,
)
from overlay.policy.network.scope import IndexedPod, PodIndex, Scope, index_of, indexed

_MANY: Final = 500  # changed pods from which on it is cheaper to begin anew


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs from the world before: pods by key, and whether nodes do."""

    pods: Mapping[PodKey, Pod | None]
    nodes: bool


@dataclass(slots=True)
class Membership:
    """The index of the last world, the members of each scope in use, and the sets made of them."""

    index: PodIndex = field(default_factory=PodIndex)
    _world: World = field(default_factory=World)
    _members: dict[Scope, set[PodKey]] = field(default_factory=dict)
    _users: dict[Scope, list[PodMatch]] = field(default_factory=dict)
    _matches: dict[str, PodMatch] = field(default_factory=dict)
    _blocks: Blocks = field(default_factory=Blocks)

    def changes(self, world: World) -> Changes:
        """Return what differs; pods of a namespace with other labels are among it."""
        before, after = self._world, world
        pods: dict[PodKey, Pod | None] = {}
        if after.pods is not before.pods:
            old = before.pods
            for key, pod in after.pods.items():
                known = old.get(key)
                if known is not pod and known != pod:
                    pods[key] = pod
            pods.update({key: None for key in old if key not in after.pods})
        spaces: set[str] = set()
        if after.namespaces is not before.namespaces:
            names = after.namespaces.keys() | before.namespaces.keys()
            spaces = {n for n in names if after.namespace_labels(n) != before.namespace_labels(n)}
        if spaces:
            pods.update({key: pod for key, pod in after.pods.items() if key[0] in spaces})
        nodes = any(
            now.get(name) != then.get(name)
            for then, now in ((before.nodes, after.nodes), (before.node_labels, after.node_labels))
            for name in changed_keys(then, now)
        )
        return Changes(pods, nodes)

    def apply(self, world: World, changes: Changes) -> None:
        """Bring index, members and sets in step with ``world``."""
        if changes.nodes or world.cluster_policies is not self._world.cluster_policies:
            self._blocks = Blocks(world.nodes, world.node_labels)
        self._world = world
        if len(changes.pods) >= _MANY:
            self.index = index_of(world)
            for scope in self._members:
                self._members[scope] = self.index.members(scope)
            for each in self._matches.values():
                each.build(self.index, self._members)
            return
        entries = {key: indexed(pod) for key, pod in changes.pods.items()}
        touched, moves = self._touched(world, entries)
        before = self._elements(touched)
        for key, entry in entries.items():
            self.index.put(key, entry)
        self.index.namespaces = world.namespaces
        for scope, joined, left in moves:
            self._members[scope] |= joined
            self._members[scope] -= left
        after = self._elements(touched)
        for ident in touched:
            self._matches[ident].change(before[ident], after[ident])

    def match(self, terms: Sequence[Term], direction: Direction) -> Match:
        """Return what ``terms`` match at present; its sets of pods are kept in step."""
        return match_of(terms, direction, self._pods, self._blocks)

    def keep(self, matches: Iterable[Match]) -> None:
        """Forget the sets of pods, and the scopes, that none of ``matches`` uses."""
        kept = {pods.ident: pods for match in matches for pods in match.pods}
        if kept.keys() == self._matches.keys():
            return
        self._matches = kept
        self._users = {}
        for each in kept.values():
            for scope in {scope for scope, _ in each.entries}:
                self._users.setdefault(scope, []).append(each)
        self._members = {scope: self._members[scope] for scope in self._users}

    def _pods(self, entries: tuple[Entry, ...]) -> PodMatch:
        ident = entries_digest(entries)
        known = self._matches.get(ident)
        if known is None:
            known = self._matches[ident] = PodMatch(ident, entries)
            for scope in {scope for scope, _ in entries}:
                if scope not in self._members:
                    self._members[scope] = self.index.members(scope)
                self._users.setdefault(scope, []).append(known)
            known.build(self.index, self._members)
        return known

    def _touched(
        self, world: World, entries: Mapping[PodKey, IndexedPod | None]
    ) -> tuple[dict[str, set[tuple[int, str]]], list[tuple[Scope, set[PodKey], set[PodKey]]]]:
        """Return the addresses to look at again, by match, and who joins or leaves each scope."""
        touched: dict[str, set[tuple[int, str]]] = {}
        moves: list[tuple[Scope, set[PodKey], set[PodKey]]] = []
        labels = {space: world.namespace_labels(space) for space in {key[0] for key in entries}}
        for scope, users in self._users.items():
            members = self._members[scope]
            joined: set[PodKey] = set()
            left: set[PodKey] = set()
            for key, entry in entries.items():
                if scope.namespaces is None and scope.own != key[0]:
                    continue
                was = key in members
                will = entry is not None and scope.selects(entry.pod, labels[key[0]])
                old = self.index.pods.get(key)
                if not was and not will:
                    continue
                if was == will and _alike(old, entry):
                    continue
                if was != will:
                    (joined if will else left).add(key)
                both = {*(old.addresses if old else ()), *(entry.addresses if entry else ())}
                for user in users:
                    touched.setdefault(user.ident, set()).update(both)
            if joined or left:
                moves.append((scope, joined, left))
        return touched, moves

    def _elements(self, touched: Mapping[str, set[tuple[int, str]]]) -> dict[str, Elements]:
        return {
            ident: self._matches[ident].elements(addresses, self.index, self._members)
            for ident, addresses in touched.items()
        }


def _alike(old: IndexedPod | None, new: IndexedPod | None) -> bool:
    return (
        old is not None
        and new is not None
        and old.addresses == new.addresses
        and old.pod.ports == new.pod.ports
    )
