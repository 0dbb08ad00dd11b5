"""Between an agent and the members of etcd: delays, losses, partitions, members that are down.

A call is two messages. Either may be late or lost, so a transaction whose
caller has given up, or was killed, may still be applied.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final, Self

import grpc

from overlay.store.base import StopSignal, StoreError
from overlay.store.etcd_connection import Member
from overlay.store.etcd_errors import translate
from overlay.store.etcd_keys import prefix_range
from overlay.store.etcd_stream import canceled
from tests.sim import etcd
from tests.sim.loop import KilledError, Loop, Process, Task

_KEEPALIVE_S: Final = 8.0  # until a connection that leads nowhere is given up (6 s and 2 s)
_REFUSED_S: Final = 0.02  # until a member that is down is known to be
_QUICK_S: Final = (0.0003, 0.004)
_SLOW_S: Final = (0.05, 9.0)


@dataclass(slots=True)
class Weather:
    """How messages fare: the chances of each to be lost or late, and of a caller to be killed."""

    loss: float = 0.0
    slow: float = 0.0
    kill: float = 0.0


@dataclass(slots=True)
class Server:
    """One member: ``lag_s`` behind the cluster in what its watches see.

    Where ``stuck_at`` is a revision, its address leads to several members (a
    load balancer): watches to one that stands still there, calls to another.
    """

    url: str
    is_up: bool = True
    starts: int = 1  # what was sent to it is lost with it
    lag_s: float = 0.0
    stuck_at: int | None = None
    watches: list["Watching"] = field(default_factory=list)


class Wire:
    """The network between nodes and members."""

    def __init__(self, loop: Loop, cluster: etcd.FakeEtcd, members: int) -> None:
        self.loop = loop
        self.cluster = cluster
        self.servers = {
            f"http://etcd{n}:2379": Server(f"http://etcd{n}:2379") for n in range(members)
        }
        self.weather = Weather()
        self.has_leader = True
        self.called: Callable[[str], None] = lambda _node: None  # each call, and each watch
        self.cuts: set[tuple[str, str]] = set()  # node and URL: nothing passes, nothing is refused

    def is_cut(self, node: str, url: str) -> bool:
        """Return whether messages between a node and a member vanish."""
        return (node, url) in self.cuts

    def delay(self) -> float | None:
        """Return how long one message takes; None for one that is lost."""
        draw = self.loop.random
        if self.weather.loss and draw.random() < self.weather.loss:
            return None
        is_slow = self.weather.slow and draw.random() < self.weather.slow
        return draw.uniform(*(_SLOW_S if is_slow else _QUICK_S))

    def changed(self) -> None:
        """Tell the watches that there is a new revision."""
        for server in self.servers.values():
            for watching in server.watches:
                self.loop.after(server.lag_s, watching.pump)

    def stop(self, url: str) -> None:
        """End a member as kill -9 does."""
        server = self.servers[url]
        server.is_up, server.stuck_at = False, None
        server.starts += 1
        self.break_watches(url, "Connection reset by peer")

    def break_watches(self, url: str, said: str) -> None:
        """End every watch of a member."""
        server = self.servers[url]
        watches, server.watches = server.watches, []
        for watching in watches:
            watching.end(etcd.RefusedError(grpc.StatusCode.UNAVAILABLE, said))

    def unstick(self, url: str) -> None:
        """Let the member that watches lead to catch up."""
        server = self.servers[url]
        server.stuck_at = None
        for watching in tuple(server.watches):
            self.loop.after(0.0, watching.pump)

    def heal(self, node: str, url: str) -> None:
        """Let messages pass again; TCP brings what it kept."""
        self.cuts.discard((node, url))
        for watching in self.servers[url].watches:
            if watching.node == node:
                watching.flush()


class FakeClient:
    """The part of etcd3's client that the store uses, for one process and one member."""

    def __init__(self, wire: Wire, process: Process, node: str, url: str, timeout_s: float) -> None:
        self.wire = wire
        self.process = process
        self.node = node
        self.server = wire.servers[url]
        self.metadata: Any = None
        self._timeout_s = timeout_s

    @property
    def author(self) -> str:
        """Return who writes: the node, and which of its claims the writing belongs to."""
        return f"{self.node}, {self.process.claim}" if self.process.claim else self.node

    def close(self) -> None:
        """Do nothing: calls under way run into their deadlines."""

    def get_response(
        self,
        key: bytes | str,
        range_end: bytes | None = None,
        limit: int | None = None,
        revision: int | None = None,
        *,
        keys_only: bool = False,
    ) -> etcd.RangeAnswer:
        """Read a key or a range."""
        start = key.encode() if isinstance(key, str) else key

        def read(cluster: etcd.FakeEtcd) -> etcd.RangeAnswer:
            return cluster.range(
                start, range_end, limit=limit or 0, revision=revision or 0, keys_only=keys_only
            )

        answer: etcd.RangeAnswer = self._call(read)
        return answer

    def get_range_response(
        self, start: bytes, end: bytes, min_mod_revision: int = 0, *, keys_only: bool = False
    ) -> etcd.RangeAnswer:
        """Read what changed in a range since a revision."""
        answer: etcd.RangeAnswer = self._call(
            lambda cluster: cluster.range(
                start, end, min_mod_revision=min_mod_revision, keys_only=keys_only
            ),
        )
        return answer

    def lease(self, ttl_s: int) -> SimpleNamespace:
        """Grant a lease."""
        return SimpleNamespace(id=self._call(lambda cluster: cluster.grant(ttl_s)))

    def get_lease_info(self, lease_id: int) -> SimpleNamespace:
        """Return what a lease has left, and its keys."""
        ttl_s, keys = self._call(lambda cluster: cluster.time_to_live(lease_id))
        return SimpleNamespace(TTL=ttl_s, keys=keys)

    def revoke_lease(self, lease_id: int) -> None:
        """End a lease."""
        author = self.author
        self._call(lambda cluster: cluster.revoke(author, lease_id))

    def transaction(
        self, compare: list[Any], then: list[Any], _otherwise: list[Any]
    ) -> tuple[bool, list[list[tuple[bytes, SimpleNamespace]] | None]]:
        """Do a transaction, with etcd3's own objects for its parts."""
        conditions = [_compare(each) for each in compare]
        requests = [_request(each) for each in then]
        author = self.author
        done, answers = self._call(lambda cluster: cluster.transact(author, conditions, requests))
        return done, [
            None if kvs is None else [(kv.value, _meta(kv)) for kv in kvs] for kvs in answers
        ]

    def _call(self, action: Callable[[etcd.FakeEtcd], Any]) -> Any:
        """Send, wait, and return the answer or raise what became of it."""
        task = self.process.current()
        wire, loop = self.wire, self.wire.loop
        wire.called(self.node)
        there_s = wire.delay()
        if not self.server.is_up:
            task.resume_after(_REFUSED_S, etcd.RefusedError(grpc.StatusCode.UNAVAILABLE, "refused"))
        elif there_s is not None and not wire.is_cut(self.node, self.server.url):
            turn, starts = task.turn, self.server.starts
            loop.after(there_s, lambda: self._serve(task, turn, starts, action))
        late = etcd.RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        task.resume_after(self._timeout_s, late)
        answer = task.suspend()
        if wire.weather.kill and loop.random.random() < wire.weather.kill:
            self.process.die()
        if isinstance(answer, grpc.RpcError):
            raise answer
        return answer

    def _serve(
        self, task: Task, turn: int, starts: int, action: Callable[[etcd.FakeEtcd], Any]
    ) -> None:
        wire = self.wire
        if starts != self.server.starts:
            return
        answer: Any
        if not wire.has_leader:
            answer = etcd.RefusedError(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
        else:
            try:
                answer = action(wire.cluster)
            except etcd.RefusedError as exc:
                answer = exc
        back_s = wire.delay()
        if back_s is not None and not wire.is_cut(self.node, self.server.url):
            task.resume_after(back_s, answer, turn=turn)


def _compare(each: Any) -> etcd.Compare:
    target = {"Create": "create", "Mod": "mod", "Bound": "lease"}[type(each).__name__]
    return etcd.Compare(target, each.key, int(each.value), each.range_end)


def _request(each: Any) -> etcd.Request:
    name = type(each).__name__
    if name == "Put":
        return etcd.Put(each.key, each.value, each.lease or 0)
    return etcd.Get(each.key) if name == "Get" else etcd.Delete(each.key)


def _meta(kv: etcd.KeyValue) -> SimpleNamespace:
    return SimpleNamespace(
        key=kv.key,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        lease_id=kv.lease,
    )


class FakeStream:
    """A watch call of one process; see ``overlay.store.etcd_watch.Stream``."""

    def __init__(self, member: Member, root: str, revision: int) -> None:
        client: FakeClient = member.client
        self._client = client
        self._process = client.process
        self._process.current()
        self._url = member.url
        self._answers: deque[Any] = deque()
        self._waiting: Task | None = None
        self._watching = Watching(client, root, revision, self._push)
        wire = client.wire
        wire.called(client.node)
        there_s = wire.delay()
        if not client.server.is_up:
            refused = etcd.RefusedError(grpc.StatusCode.UNAVAILABLE, "refused")
            wire.loop.after(_REFUSED_S, lambda: self._push(refused))
        elif there_s is not None and not wire.is_cut(client.node, client.server.url):
            wire.loop.after(there_s, self._watching.begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.cancel()

    def next(self, timeout_s: float, stop: StopSignal) -> Any:
        """Return the next answer, None after ``timeout_s``."""
        if not self._answers and not stop.is_set():
            self._waiting = self._process.current()
            self._waiting.resume_after(timeout_s)
            self._waiting.suspend()
            self._waiting = None
        if not self._answers:
            return None
        answer = self._answers.popleft()
        if isinstance(answer, StoreError):
            raise answer
        if answer.canceled:
            raise canceled(answer, self._url)
        return answer

    def waiting(self) -> Any:
        """Return an answer that is there already."""
        if not self._answers or isinstance(self._answers[0], StoreError):
            return None
        return None if self._answers[0].canceled else self._answers.popleft()

    def read(self, key: str) -> Any:
        """Return the answer to a read; here there is one connection for all."""
        return self._client.get_response(key, keys_only=True)

    def _push(self, answer: Any) -> None:
        self._answers.append(
            translate(answer, self._url) if isinstance(answer, grpc.RpcError) else answer
        )
        if self._waiting is not None:
            self._waiting.resume_after(0.0)


class Watching:
    """The member's end of a watch call: sends history in order, never past what it has seen."""

    def __init__(
        self, client: FakeClient, root: str, revision: int, push: Callable[[Any], None]
    ) -> None:
        self.node = client.node
        self._client = client
        self._wire = client.wire
        self._server = client.server
        self._starts = client.server.starts
        self._next = revision
        self._range = prefix_range(root)
        self._push = push
        self._is_over = False
        self._kept: list[Any] = []  # what TCP holds back while nothing passes
        self._arrives_at = 0.0

    def begin(self) -> None:
        """Answer the request for a watch."""
        wire = self._wire
        if self._is_over or self._starts != self._server.starts:
            return
        if not wire.has_leader:
            self.end(etcd.RefusedError(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"))
            return
        self._server.watches.append(self)
        self._send(_answer(self._header(), created=True))
        self.pump()

    def pump(self) -> None:
        """Send what is new, all of it in one answer."""
        is_stuck = self._server.stuck_at is not None
        if self._is_over or is_stuck or self._next > self._wire.cluster.revision:
            return
        cluster, (start, end) = self._wire.cluster, self._range
        if self._next < cluster.compacted:
            self._send(
                _answer(
                    cluster.header,
                    canceled=True,
                    compact_revision=cluster.compacted,
                    cancel_reason="mvcc: required revision has been compacted",
                )
            )
            self.cancel()
            return
        events = [
            SimpleNamespace(type=int(event.is_delete), kv=event.kv)
            for revision, changes in cluster.history
            if revision >= self._next
            for event in changes
            if start <= event.kv.key < end
        ]
        self._next = cluster.revision + 1
        if events:
            self._send(_answer(cluster.header, events=events))

    def _header(self) -> etcd.Header:
        header, stuck_at = self._wire.cluster.header, self._server.stuck_at
        return header if stuck_at is None else replace(header, revision=stuck_at)

    def flush(self) -> None:
        """Send what was held back."""
        kept, self._kept = self._kept, []
        for answer in kept:
            self._send(answer)

    def end(self, error: grpc.RpcError) -> None:
        """End the call with an error, if it still reaches the client."""
        if not self._is_over:
            self._send(error)
            self.cancel()

    def cancel(self) -> None:
        """Stop sending."""
        self._is_over = True
        if self in self._server.watches:
            self._server.watches.remove(self)

    def _send(self, answer: Any) -> None:
        wire = self._wire
        if wire.is_cut(self.node, self._server.url):
            self._kept.append(answer)
            wire.loop.after(_KEEPALIVE_S, self._give_up)
            return
        # Within a connection nothing is lost and nothing overtakes; a loss ends it.
        delay_s = wire.delay()
        if delay_s is None:
            delay_s = _KEEPALIVE_S
            answer = etcd.RefusedError(grpc.StatusCode.UNAVAILABLE, "keepalive watchdog timeout")
            self.cancel()
        self._arrives_at = max(self._arrives_at, wire.loop.now + delay_s)
        wire.loop.at(self._arrives_at, lambda: self._arrive(answer))

    def _arrive(self, answer: Any) -> None:
        if self._client.process.is_alive:
            self._push(answer)

    def _give_up(self) -> None:
        if self._kept:
            self._kept = []
            self.cancel()
            said = "keepalive watchdog timeout"
            self._arrive(etcd.RefusedError(grpc.StatusCode.UNAVAILABLE, said))


def _answer(header: etcd.Header, **fields: Any) -> SimpleNamespace:
    known = {
        "created": False,
        "canceled": False,
        "compact_revision": 0,
        "cancel_reason": "",
        "events": [],
    }
    return SimpleNamespace(header=header, **(known | fields))


__all__ = ["FakeClient", "FakeStream", "KilledError", "Server", "Weather", "Wire"]
