"""The watch: list, then follow from that revision, and never believe a silence.

A break is taken up at the last revision seen + 1. After a compaction, or when
the store was put back to an older state, everything is listed again: at once,
but ever later where no stream can be followed from what was listed. A
connection that leads nowhere is noticed by TCP's probes and by keepalive pings, a
member that lost its leader by ``hasleader``, and either also by a read after some
idle time.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, Protocol, Self, TypeAlias, TypeVar

from overlay.store.base import StopSignal, StoreError, StoreUnavailableError
from overlay.store.etcd_connection import EtcdConnection, Member
from overlay.store.etcd_early import EarlyListing
from overlay.store.etcd_errors import (
    CertificateError,
    CompactedError,
    ResyncError,
    StaleConnectionError,
)
from overlay.store.etcd_keys import key_value, list_all, list_keys
from overlay.store.etcd_stream import Answer, GrpcStreams
from overlay.store.etcd_table import CONFIG, KeyValue, Listing

log = logging.getLogger(__name__)

V_co = TypeVar("V_co", covariant=True)
V = TypeVar("V")

_IDLE_CHECK_S: Final = 15.0  # so many seconds of silence, then one linearizable read
_BACKOFF_S: Final = (0.05, 0.8)  # first and longest pause after a failure
# The longest between listings that no stream could be followed from: right
# within 2 s, and a listing of 5,000 leases costs a tenth of a second.
_LISTING_PAUSE_S: Final = 2.0
_STEADY_S: Final = 1.0  # a stream that was followed for so long is a good one
# A store is put back by stopping all members; they are not back before that.
_PUT_BACK_S: Final = 1.0
_DELETE: Final = 1  # mvccpb.Event.EventType


class Stream(Protocol):
    """The answers of one watch call; leaving the context ends the call."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def next(self, timeout_s: float, stop: StopSignal) -> Answer | None:
        """Return the next answer; None after ``timeout_s`` or when ``stop`` is set.

        Raises what ended the call.
        """

    def waiting(self) -> Answer | None:
        """Return an answer that is there already, or None; an error stays for ``next``."""

    def read(self, key: str) -> Any:
        """Return the answer to a linearizable read of ``key``, on the connection of the call.

        Raises what ended the read.
        """


# A stream of the changes of all keys below a prefix, from a revision on.
OpenStream: TypeAlias = Callable[[Member, str, int], Stream]


class Table(Protocol[V_co]):
    """What a watch keeps up to date: keys at one revision, and the view that they make."""

    @property
    def revision(self) -> int:
        """Return the revision that the table is of."""

    @property
    def cluster_id(self) -> int:
        """Return the etcd cluster that it is of."""

    def replace(self, listing: Listing) -> None:
        """Take over a whole listing; what is not in it is gone."""

    def apply(self, events: Iterable[KeyValue]) -> bool:
        """Take over changes in order; return whether they change the view."""

    def is_made_of(self, keys: Iterable[KeyValue]) -> bool:
        """Return whether the table holds exactly ``keys``."""

    def view(self) -> V_co:
        """Return what the table now holds."""


class EtcdWatch(Generic[V]):
    """One watch of the keys below ``root``; see ``LeaseStore.watch`` for what it promises.

    ``listing`` returns all of them now, ``keys_at`` as they were at a revision,
    as far as the table compares them; ``early`` is a listing under way.
    """

    def __init__(
        self,
        connection: EtcdConnection,
        table: Table[V],
        root: str,
        *,
        listing: Callable[[EtcdConnection, str], Listing] = list_all,
        keys_at: Callable[[EtcdConnection, str, int], Iterable[KeyValue]] = list_keys,
        early: EarlyListing | None = None,
        open_stream: OpenStream | None = None,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._open_stream = open_stream if open_stream is not None else GrpcStreams()
        self._uniform = uniform
        self._root = root
        self._table = table
        self._list, self._keys_at = listing, keys_at
        self._early = early
        self._must_list = True

    def run(
        self,
        deliver: Callable[[V], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Deliver views until ``stop`` is set."""
        told: type[StoreError] | None = None
        pauses = _Pauses()
        while not stop.is_set():
            begun_at: float | None = None
            reconnects = self._connection.reconnects
            try:
                for is_changed in self._views(deliver, stop):
                    begun_at = self._clock() if begun_at is None else begun_at
                    if told is not None:
                        told = None
                        trouble(None)
                    if is_changed:
                        deliver(self._table.view())
            except StoreError as exc:
                if isinstance(exc, CompactedError | ResyncError):
                    log.info("listing again: %s", exc)
                    self._must_list = True
                is_steady = begun_at is not None and self._clock() - begun_at >= _STEADY_S
                if is_steady or self._connection.reconnects != reconnects:
                    pauses = _Pauses()
                pause_s = pauses.after(exc)
                if not pause_s:
                    continue
                error = _unfollowed(exc) if pauses.misses else exc
                if told is not type(error):
                    told = type(error)
                    trouble(error)
                # At random, so that not all agents come back in the same moment.
                stop.wait(pause_s * self._uniform(0.5, 1.0))

    def _views(self, deliver: Callable[[V], None], stop: StopSignal) -> Iterator[bool]:
        """List if that is due, and yield what ``_follow`` does."""
        listed_at = None
        if self._must_list:
            listed_at = self._replace()
            self._must_list = False
            deliver(self._table.view())
        yield from self._follow(stop, listed_at)

    def _replace(self) -> float:
        """Bring the table in step with a listing; return when that was begun."""
        early, self._early = self._early, None
        if early is not None:
            self._table.replace(early.take())
            return early.begun_at
        listed_at = self._clock()
        self._table.replace(self._list(self._connection, self._root))
        return listed_at

    def _check(self, member: Member, stream: Stream | None = None) -> None:
        """Read through ``member``: is it there, in a quorum, with a login, and not put back?"""
        key = self._root + CONFIG

        def read(client: Any) -> Any:
            if stream is not None:
                return stream.read(key)
            return client.get_response(key, keys_only=True)

        self._compare(self._connection.on_member(member, read).header)

    def _compare(self, header: Any) -> None:
        if header.revision < self._table.revision:
            msg = f"etcd was put back from revision {self._table.revision} to {header.revision}"
            raise ResyncError(msg)
        if header.cluster_id != self._table.cluster_id:
            msg = "another etcd cluster answers"
            raise ResyncError(msg)

    def _verify(self) -> None:
        """Look whether the store's history goes through what the table holds.

        A store that was put back may be past our revision again, with the id
        that its cluster always had: the revision alone does not tell.
        """
        revision = self._table.revision
        if not self._table.is_made_of(self._keys_at(self._connection, self._root, revision)):
            msg = f"etcd was put back; it never was what was seen at {revision}"
            raise ResyncError(msg)

    def _follow(self, stop: StopSignal, listed_at: float | None) -> Iterator[bool]:
        """Apply changes as they come; yield whether there were any, first False once it runs.

        ``listed_at`` is when the table was listed, None for a watch that is taken up again.
        """
        member = self._connection.member()
        try:
            if listed_at is None:
                self._check(member)
            with self._open_stream(member, self._root, self._table.revision + 1) as stream:
                created = stream.next(self._connection.attempt_s, stop)
                if stop.is_set():
                    return
                self._accept(created)
                if listed_at is None or self._clock() - listed_at > _PUT_BACK_S:
                    self._verify()
                    # Asked on another connection: had the store been put back in between, the
                    # stream's would be broken, and what it told before is of another history.
                    self._check(member, stream)
                yield False
                yield from self._changes(stream, member, stop)
        except (StoreUnavailableError, CertificateError) as exc:
            if not isinstance(exc, CompactedError | ResyncError):
                self._connection.failed(member, exc)
            raise

    def _changes(self, stream: Stream, member: Member, stop: StopSignal) -> Iterator[bool]:
        while not stop.is_set():
            answer = stream.next(_IDLE_CHECK_S, stop)
            if answer is None:
                if not stop.is_set():
                    self._check(member, stream)
                continue
            events = list(_events(answer))
            # What waits already belongs to the same view: one delivery for all.
            while (waiting := stream.waiting()) is not None:
                events += _events(waiting)
            yield self._table.apply(events)

    def _accept(self, answer: Answer | None) -> None:
        if answer is None:
            msg = "etcd does not answer a watch in time"
            raise StaleConnectionError(msg)
        if not answer.created:
            msg = "etcd answered a watch with something else"
            raise StoreUnavailableError(msg)
        # A member that is behind waits for its future in silence.
        self._compare(answer.header)


class _Pauses:
    """How long to wait after failures in a row, in seconds: ever longer, up to a bound."""

    def __init__(self) -> None:
        self._next_s = _BACKOFF_S[0]
        self.misses = 0  # listings in a row that no stream could be followed from

    def after(self, error: StoreError) -> float:
        """Return the pause; none after the first listing that is out of date already."""
        is_miss = isinstance(error, CompactedError | ResyncError)
        self.misses = self.misses + 1 if is_miss else 0
        if self.misses == 1:
            return 0.0
        pause_s, most_s = self._next_s, _LISTING_PAUSE_S if is_miss else _BACKOFF_S[1]
        self._next_s = min(pause_s * 2, most_s)
        return pause_s


def _unfollowed(error: StoreError) -> ResyncError:
    return ResyncError(
        f"{error}; listed again, the watch cannot begin there either: do all addresses of "
        "--etcd-endpoints lead to members of one cluster that keep up? "
        "Everything is listed every two seconds meanwhile"
    )


def _events(answer: Answer) -> Iterator[KeyValue]:
    for event in answer.events:
        found = key_value(event.kv)
        if event.type == _DELETE:
            yield KeyValue(found.key, None, 0, found.mod_revision)
        else:
            yield found
