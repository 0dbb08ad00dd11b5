"""An etcd in memory: revisions, leases, transactions, history; refuses what etcd refuses.

Only what the state machine behind the members does; how calls get there is in
``wire``. tests/etcd/test_fake_etcd.py asks the same of this and of a real one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc

_NO_KEYS: Final[Mapping[bytes, "KeyValue"]] = {}


class RefusedError(grpc.RpcError):  # type: ignore[misc]  # gRPC has no types
    """A call that was answered with an error, as gRPC's clients raise it."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        """Return gRPC's status code."""
        return self._code

    def details(self) -> str:
        """Return what etcd said."""
        return self._details


def compacted() -> RefusedError:
    """Return the refusal of a revision that is gone."""
    said = "etcdserver: mvcc: required revision has been compacted"
    return RefusedError(grpc.StatusCode.OUT_OF_RANGE, said)


def future() -> RefusedError:
    """Return the refusal of a revision that is yet to come."""
    said = "etcdserver: mvcc: required revision is a future revision"
    return RefusedError(grpc.StatusCode.OUT_OF_RANGE, said)


def no_lease() -> RefusedError:
    """Return the refusal of a lease that is not there."""
    return RefusedError(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key; a deleted one has no value, and the revision that deleted it."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """What each answer says of the etcd that gave it."""

    revision: int
    cluster_id: int


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    """Keys of a range in order; ``more`` where a limit cut them off, ``count`` with no limit."""

    header: Header
    kvs: tuple[KeyValue, ...]
    more: bool
    count: int


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction on ``key``, or on all keys from it to ``end``."""

    target: str  # "create", "mod" or "lease"
    key: bytes
    value: int
    end: bytes | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key."""

    key: bytes


Request = Put | Get | Delete


@dataclass(frozen=True, slots=True)
class Event:
    """One key that one revision changed: ``before`` is None where there was none."""

    is_delete: bool
    kv: KeyValue
    before: KeyValue | None


@dataclass(slots=True)
class EtcdLease:
    """A time to live, started anew when it is granted or when etcd gets a new leader."""

    ttl_s: int
    ends_at: float
    keys: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Backup:
    """What a snapshot of etcd holds."""

    revision: int
    compacted: int
    states: Mapping[int, Mapping[bytes, KeyValue]]
    history: tuple[tuple[int, tuple[Event, ...]], ...]
    leases: Mapping[int, tuple[int, frozenset[bytes]]]


class FakeEtcd:
    """The state of one cluster. ``committed`` is called with each revision's author and events."""

    def __init__(self, clock: Callable[[], float], new_id: Callable[[], int]) -> None:
        self._clock = clock
        self._new_id = new_id
        self.cluster_id = new_id()
        self.revision = 1
        self.compacted = 0
        self.states: dict[int, Mapping[bytes, KeyValue]] = {1: _NO_KEYS}
        self.history: list[tuple[int, tuple[Event, ...]]] = []
        self.leases: dict[int, EtcdLease] = {}
        self.granted: Callable[[float], None] = lambda _ends_at: None
        self.committed: Callable[[str, tuple[Event, ...]], None] = lambda _author, _events: None

    @property
    def header(self) -> Header:
        """Return the header of an answer given now."""
        return Header(self.revision, self.cluster_id)

    @property
    def keys(self) -> Mapping[bytes, KeyValue]:
        """Return all keys as they are now."""
        return self.states[self.revision]

    def range(
        self,
        key: bytes,
        end: bytes | None = None,
        *,
        limit: int = 0,
        revision: int = 0,
        min_mod_revision: int = 0,
        keys_only: bool = False,
    ) -> RangeAnswer:
        """Answer a read. Raises RefusedError for a revision that is not there."""
        if revision > self.revision:
            raise future()
        if revision and revision < self.compacted:
            raise compacted()
        state = self.states[revision or self.revision]
        there = [state[k] for k in sorted(state) if (k == key if end is None else key <= k < end)]
        found = [kv for kv in there if kv.mod_revision >= min_mod_revision]
        if keys_only:
            found = [
                KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease)
                for kv in found
            ]
        kept = found[:limit] if limit else found
        return RangeAnswer(self.header, tuple(kept), len(kept) < len(found), len(there))

    def transact(
        self, author: str, compare: Sequence[Compare], then: Sequence[Request]
    ) -> tuple[bool, tuple[tuple[KeyValue, ...] | None, ...]]:
        """Do ``then`` where all of ``compare`` holds. Raises RefusedError for an ended lease."""
        state = dict(self.keys)
        if not all(_holds(each, state) for each in compare):
            return False, ()
        for request in then:
            if isinstance(request, Put) and request.lease and request.lease not in self.leases:
                raise no_lease()
        answers: list[tuple[KeyValue, ...] | None] = []
        events: list[Event] = []
        for request in then:
            if isinstance(request, Get):
                found = state.get(request.key)
                answers.append(() if found is None else (found,))
                continue
            answers.append(None)
            before = state.get(request.key)
            if isinstance(request, Put):
                state[request.key] = kv = self._written(request, before)
                events.append(Event(False, kv, before))
            elif before is not None:
                events.append(self._gone(state, before))
        self._commit(author, state, events)
        return True, tuple(answers)

    def grant(self, ttl_s: int) -> int:
        """Return a new lease."""
        lease_id = self._new_id()
        self.leases[lease_id] = EtcdLease(ttl_s, self._clock() + ttl_s)
        self.granted(self._clock() + ttl_s)
        return lease_id

    def revoke(self, author: str, lease_id: int) -> None:
        """End a lease and delete its keys, all in one revision. Raises RefusedError."""
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            raise no_lease()
        state = dict(self.keys)
        events = [self._gone(state, state[key]) for key in sorted(lease.keys) if key in state]
        self._commit(author, state, events)

    def time_to_live(self, lease_id: int) -> tuple[int, tuple[bytes, ...]]:
        """Return the seconds that a lease has left and its keys; -1 where there is none."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return -1, ()
        return int(lease.ends_at - self._clock()), tuple(sorted(lease.keys))

    def expire(self) -> None:
        """End the leases whose time is over."""
        now = self._clock()
        for lease_id in [i for i, lease in self.leases.items() if lease.ends_at <= now]:
            self.revoke("etcd", lease_id)

    def elect(self) -> None:
        """Get a new leader, which starts every lease's time anew (lessor.Promote)."""
        for lease in self.leases.values():
            lease.ends_at = max(lease.ends_at, self._clock() + lease.ttl_s)

    def compact(self, revision: int) -> None:
        """Forget what was before ``revision``. Raises RefusedError."""
        if revision > self.revision:
            raise future()
        if revision <= self.compacted:
            raise compacted()
        self.compacted = revision
        self.history = [each for each in self.history if each[0] >= revision]
        self.states = {r: state for r, state in self.states.items() if r >= revision}

    def backup(self) -> Backup:
        """Return what a restore needs."""
        leases = {i: (lease.ttl_s, frozenset(lease.keys)) for i, lease in self.leases.items()}
        return Backup(self.revision, self.compacted, dict(self.states), tuple(self.history), leases)

    def restore(self, backup: Backup, *, is_new_cluster: bool) -> None:
        """Go back to a backup; with the members' old names and token the id stays."""
        self.revision, self.compacted = backup.revision, backup.compacted
        self.states, self.history = dict(backup.states), list(backup.history)
        self.leases = {
            lease_id: EtcdLease(ttl_s, self._clock() + ttl_s, set(keys))
            for lease_id, (ttl_s, keys) in backup.leases.items()
        }
        if is_new_cluster:
            self.cluster_id = self._new_id()

    def _written(self, put: Put, before: KeyValue | None) -> KeyValue:
        if before is not None and before.lease in self.leases:
            self.leases[before.lease].keys.discard(put.key)
        if put.lease:
            self.leases[put.lease].keys.add(put.key)
        return KeyValue(
            put.key,
            put.value,
            before.create_revision if before is not None else self.revision + 1,
            self.revision + 1,
            before.version + 1 if before is not None else 1,
            put.lease,
        )

    def _gone(self, state: dict[bytes, KeyValue], before: KeyValue) -> Event:
        del state[before.key]
        if before.lease in self.leases:
            self.leases[before.lease].keys.discard(before.key)
        return Event(True, KeyValue(before.key, b"", 0, self.revision + 1), before)

    def _commit(
        self, author: str, state: Mapping[bytes, KeyValue], events: Sequence[Event]
    ) -> None:
        if not events:
            return
        self.revision += 1
        self.states[self.revision] = state
        self.history.append((self.revision, tuple(events)))
        self.committed(author, tuple(events))


def _holds(compare: Compare, state: Mapping[bytes, KeyValue]) -> bool:
    """Return whether all keys of the range compare equal; an empty range is one of zeros."""
    if compare.end is None:
        kv = state.get(compare.key)
        found = [kv] if kv is not None else []
    else:
        found = [kv for key, kv in state.items() if compare.key <= key < compare.end]
    if not found:
        return compare.value == 0
    return all(_field(kv, compare.target) == compare.value for kv in found)


def _field(kv: KeyValue, target: str) -> int:
    return {"create": kv.create_revision, "mod": kv.mod_revision, "lease": kv.lease}[target]
