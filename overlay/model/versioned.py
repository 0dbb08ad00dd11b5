"""Maps and sets as of one moment, which know what they have in common with older ones.

One writer has a history and takes snapshots of it. A snapshot never changes,
whoever holds it and for how long; a change costs itself, not a copy of what
stayed. What lies between two snapshots is asked of the journal that both have:
comparing two maps of 5,000 leases by identity takes 0.5 ms (November 2026).
"""

from collections.abc import (
    Collection,
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    ValuesView,
)
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any, Final, Generic, TypeVar, overload

from overlay.model.hamt import Node, leaf_of, leaves, made_of, with_item, without

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
D = TypeVar("D")

_ROOM: Final = 256  # steps that are remembered
_MANY: Final = 8  # more changes than one for so many entries: made anew, not one by one
_NONE: Final[Any] = object()
_NOTHING: Final[Mapping[Any, Any]] = {}


class Journal(Generic[K]):
    """Which keys changed in each step. One thread adds, any may ask."""

    def __init__(self, room: int = _ROOM) -> None:
        self._steps: dict[int, frozenset[K]] = {}
        self._room = room
        self.step = 0

    def add(self, keys: frozenset[K]) -> None:
        """Note a step in which ``keys`` came, went or changed."""
        self._steps[self.step + 1] = keys
        self.step += 1
        self._steps.pop(self.step - self._room, None)

    def between(self, older: int, newer: int) -> Collection[K] | None:
        """Return the keys of the steps after ``older`` to ``newer``; None where that is forgotten.

        Also where ``older`` is the newer one.
        """
        if not 0 <= newer - older <= self._room:
            return None
        steps: list[frozenset[K]] = []
        for step in range(older + 1, newer + 1):
            keys = self._steps.get(step)
            if keys is None:
                return None
            steps.append(keys)
        return steps[0] if len(steps) == 1 else frozenset[K]().union(*steps)


class _Snapshot(Generic[K]):
    """What maps and sets have in common: keys after one step of a journal."""

    __slots__ = ("count", "journal", "root", "step")

    def __init__(self, root: Node, count: int, journal: Journal[K]) -> None:
        self.root = root
        self.count = count
        self.journal = journal
        self.step = journal.step

    def __contains__(self, key: object) -> bool:
        return key in leaf_of(self.root, key)

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(leaves(self.root))

    def __len__(self) -> int:
        return self.count

    def changed_since(self, older: object) -> Collection[K] | None:
        """Return the keys that may differ from ``older``; None where nobody remembers."""
        if not isinstance(older, _Snapshot) or older.journal is not self.journal:
            return None
        return self.journal.between(older.step, self.step)


class VersionedMap(_Snapshot[K], Mapping[K, V_co]):
    """A mapping that never changes, in the order of hashes. ``MapHistory`` makes it."""

    __slots__ = ()

    def __getitem__(self, key: K) -> V_co:
        value: V_co = leaf_of(self.root, key)[key]
        return value

    @overload
    def get(self, key: K, /) -> V_co | None: ...
    @overload
    def get(self, key: K, /, default: V_co | D) -> V_co | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``."""
        return leaf_of(self.root, key).get(key, default)

    def items(self) -> ItemsView[K, V_co]:
        """Return a view of keys and values."""
        return _Items(self)

    def values(self) -> ValuesView[V_co]:
        """Return a view of the values."""
        return _Values(self)


class VersionedSet(_Snapshot[K], AbstractSet[K]):
    """A set that never changes, in the order of hashes. ``SetHistory`` makes it."""

    __slots__ = ()

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> Any:
        return frozenset(it)  # what ``&``, ``|`` and ``-`` return


class _History(Generic[K, V]):
    """What a writer does to a map or a set. Not for several threads at once."""

    def __init__(self, items: Mapping[K, V]) -> None:
        self.root = made_of(dict(items))
        self.count = len(items)
        self.journal: Journal[K] = Journal()
        self._changes: dict[K, Any] = {}  # since the last snapshot; _NONE for what went

    def discard(self, key: K) -> None:
        """Take a key out, if it is in."""
        self._changes[key] = _NONE

    def _step(self) -> bool:
        """Carry out what changed since the last step, as one step; return whether anything did."""
        changes = {
            key: value
            for key, value in self._changes.items()
            if leaf_of(self.root, key).get(key, _NONE) is not value
        }
        self._changes.clear()
        if not changes:
            return False
        if len(changes) * _MANY > self.count:
            items = {key: value for leaf in leaves(self.root) for key, value in leaf.items()}
            items.update(changes)
            items = {key: value for key, value in items.items() if value is not _NONE}
            self.root, self.count = made_of(items), len(items)
            self.journal = Journal()  # to name so many is no use, and takes as much as they do
            return True
        for key, value in changes.items():
            self._carry_out(key, value)
        self.journal.add(frozenset(changes))
        return True

    def _carry_out(self, key: K, value: Any) -> None:
        was_there = key in leaf_of(self.root, key)
        if value is _NONE:
            self.root = without(self.root, key)
        else:
            self.root = with_item(self.root, key, value)
        self.count += (value is not _NONE) - was_there


class MapHistory(_History[K, V]):
    """The writer's side of a ``VersionedMap``. A new one has nothing in common with older ones."""

    def __init__(self, items: Mapping[K, V] = _NOTHING) -> None:
        super().__init__(items)
        self._last: VersionedMap[K, V] | None = None

    def put(self, key: K, value: V) -> None:
        """Set the value of a key."""
        self._changes[key] = value

    def snapshot(self) -> VersionedMap[K, V]:
        """Return the map as it is now: the same object while nothing is changed."""
        if self._step() or self._last is None:
            self._last = VersionedMap(self.root, self.count, self.journal)
        return self._last


class SetHistory(_History[K, None]):
    """The writer's side of a ``VersionedSet``. A new one has nothing in common with older ones."""

    def __init__(self, items: Iterable[K] = ()) -> None:
        super().__init__(dict.fromkeys(items))
        self._last: VersionedSet[K] | None = None

    def add(self, key: K) -> None:
        """Put a key in, if it is not in."""
        self._changes[key] = None

    def snapshot(self) -> VersionedSet[K]:
        """Return the set as it is now: the same object while nothing is changed."""
        if self._step() or self._last is None:
            self._last = VersionedSet(self.root, self.count, self.journal)
        return self._last


class _Items(ItemsView[K, V_co]):
    _mapping: VersionedMap[K, V_co]

    def __iter__(self) -> Iterator[tuple[K, V_co]]:
        return chain.from_iterable(leaf.items() for leaf in leaves(self._mapping.root))


class _Values(ValuesView[V_co]):
    _mapping: VersionedMap[Any, V_co]

    def __iter__(self) -> Iterator[V_co]:
        return chain.from_iterable(leaf.values() for leaf in leaves(self._mapping.root))


def changed_keys(before: Mapping[K, V], after: Mapping[K, V]) -> Collection[K]:
    """Return at least the keys that are in one of both alone, or whose values are other objects.

    Costs as much as changed where ``after`` remembers, else a comparison of all.
    """
    known = after.changed_since(before) if isinstance(after, VersionedMap) else None
    if known is not None:
        return known
    if before is after:
        return ()
    gone = [key for key in before if key not in after]
    return [*gone, *(key for key, value in after.items() if before.get(key) is not value)]


def differing_members(
    before: AbstractSet[K], after: AbstractSet[K]
) -> tuple[frozenset[K], frozenset[K]]:
    """Return what came and what went, at the cost of ``changed_keys``."""
    if before is after:
        return frozenset(), frozenset()
    known = after.changed_since(before) if isinstance(after, VersionedSet) else None
    if known is None:
        return frozenset(after - before), frozenset(before - after)
    come = frozenset(key for key in known if key in after and key not in before)
    return come, frozenset(key for key in known if key in before and key not in after)
