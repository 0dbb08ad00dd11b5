"""The etcd that simulations run on answers as a real one does, refusals included."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import grpc
import pytest
from etcd3.transactions import Create, Delete, Get, Mod, Put

from overlay.store.base import StoreError
from overlay.store.etcd_connection import Member
from overlay.store.etcd_errors import CALL_ERRORS, translate
from overlay.store.etcd_keys import prefix_range
from overlay.store.etcd_stream import GrpcStreams
from overlay.store.etcd_watch import OpenStream
from overlay.store.etcd_write import Bound
from tests.sim.etcd import FakeEtcd
from tests.sim.loop import Loop, Process
from tests.sim.wire import FakeClient, FakeStream, Wire

pytestmark = pytest.mark.etcd


@dataclass
class Subject:
    """A client, real or fake; ``do`` calls it and returns what came, errors by their kind."""

    client: Any
    root: str
    call: Callable[[Callable[[], Any]], Any]
    compact: Callable[[int], Any]
    open_stream: OpenStream
    url: str = "etcd"

    def key(self, name: str) -> bytes:
        return f"{self.root}{name}".encode()

    def do(self, action: Callable[[], Any]) -> Any:
        try:
            return self.call(action)
        except (grpc.RpcError, *CALL_ERRORS) as exc:
            return type(translate(exc, "etcd")).__name__

    def txn(self, compare: list[Any], then: list[Any]) -> Any:
        return self.do(lambda: self.client.transaction(compare, then, []))

    def revision(self) -> int:
        answer = self.do(lambda: self.client.get_response(self.key("x")))
        return int(answer.header.revision)

    def watched(self, revision: int, count: int) -> Any:
        """Return ``count`` changes from a revision on: what, of which key, to what, at which."""

        def collect() -> list[tuple[str, str, bytes, int]]:
            changes: list[tuple[str, str, bytes, int]] = []
            member = Member(self.url, self.client, None)
            with self.open_stream(member, self.root, revision) as stream:
                created = stream.next(5.0, Event())
                assert created is not None
                assert created.created
                while len(changes) < count:
                    answer = stream.next(5.0, Event())
                    assert answer is not None, changes
                    changes += [self._change(event) for event in answer.events]
            return changes

        try:
            return self.do(collect)
        except StoreError as exc:
            return type(exc).__name__

    def _change(self, event: Any) -> tuple[str, str, bytes, int]:
        name = bytes(event.kv.key).decode().removeprefix(self.root)
        return ("put", "del")[event.type], name, bytes(event.kv.value), int(event.kv.mod_revision)

    def names(self, **given: Any) -> Any:
        start, end = prefix_range(self.root)
        answer = self.do(lambda: self.client.get_response(start, range_end=end, **given))
        if isinstance(answer, str):
            return answer
        return [bytes(kv.key).decode().removeprefix(self.root) for kv in answer.kvs], bool(
            answer.more
        )


def in_simulation(loop: Loop, process: Process, action: Callable[[], Any]) -> Any:
    """Return what ``action`` returns in a thread of the simulation."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(action())
        except (grpc.RpcError, StoreError) as exc:
            came.append(exc)

    process.spawn("call", run)
    while not came and loop.step(loop.now + 60):
        pass
    if isinstance(came[0], Exception):
        raise came[0]
    return came[0]


@pytest.fixture(params=["fake", "real"])
def subject(request: pytest.FixtureRequest, prefix: str) -> Iterator[Subject]:
    if request.param == "real":
        raw = request.getfixturevalue("raw")
        url = request.getfixturevalue("etcd").endpoint
        yield Subject(raw, f"{prefix}/", lambda action: action(), raw.compact, GrpcStreams(), url)
        return
    loop = Loop(1)
    cluster = FakeEtcd(lambda: loop.now, itertools.count(7).__next__)
    wire = Wire(loop, cluster, 1)
    process = Process(loop, "n", lambda where, exc: pytest.fail(f"{where}: {exc}"))
    client = FakeClient(wire, process, "n", next(iter(wire.servers)), 5.0)
    yield Subject(
        client,
        f"{prefix}/",
        lambda action: in_simulation(loop, process, action),
        cluster.compact,
        FakeStream,
    )
    process.kill()


def put(subject: Subject, name: str, value: bytes = b"x", lease: int = 0) -> Any:
    key = subject.key(name)
    return subject.txn([], [Put(key, value, lease), Get(key)])


def test_put_tells_revisions_and_a_change_keeps_the_first(subject: Subject) -> None:
    _, answers = put(subject, "a")
    (_, first), *_ = answers[-1]
    _, answers = put(subject, "a", b"y")
    (value, second), *_ = answers[-1]
    assert value == b"y"
    assert second.create_revision == first.create_revision == first.mod_revision
    assert second.mod_revision == first.mod_revision + 1


def test_transaction_is_done_only_where_all_conditions_hold(subject: Subject) -> None:
    put(subject, "a")
    key = subject.key("a")
    start, end = prefix_range(subject.root)
    seen = subject.do(lambda: subject.client.get_response(key)).kvs[0].mod_revision
    for compare, holds in (
        ([Create(key) == 0], False),
        ([Create(subject.key("b")) == 0], True),
        ([Create(start, range_end=end) == 0], False),
        ([Create(subject.key("z"), range_end=subject.key("zz")) == 0], True),
        ([Mod(key) == seen], True),
        ([Mod(key) == seen, Mod(key) == seen + 1], False),
        ([Mod(subject.key("b")) == 0], True),
        ([Bound(key) == 0], True),
        ([Bound(key) == 5], False),
        ([Bound(subject.key("b")) == 0], True),
    ):
        done, _ = subject.txn(compare, [Get(key)])
        assert done is holds, compare


def test_lease_binds_deletes_and_is_refused_when_it_is_gone(subject: Subject) -> None:
    lease_id = subject.do(lambda: subject.client.lease(60)).id
    put(subject, "a", lease=lease_id)
    put(subject, "b", lease=lease_id)
    assert subject.txn([Bound(subject.key("a")) == lease_id], [Get(subject.key("a"))])[0]
    info = subject.do(lambda: subject.client.get_lease_info(lease_id))
    assert 50 <= info.TTL <= 60
    assert sorted(map(bytes, info.keys)) == [subject.key("a"), subject.key("b")]
    put(subject, "b")  # without a lease: the key is bound no more
    subject.do(lambda: subject.client.revoke_lease(lease_id))
    assert subject.names() == (["b"], False)
    assert put(subject, "c", lease=lease_id) == "GoneError"
    assert subject.names() == (["b"], False)
    assert subject.do(lambda: subject.client.revoke_lease(lease_id)) == "GoneError"
    assert subject.do(lambda: subject.client.get_lease_info(lease_id)).TTL == -1


def test_ranges_have_limits_old_revisions_and_changes_alone(subject: Subject) -> None:
    for name in ("b", "a", "c"):
        put(subject, name)
    start, end = prefix_range(subject.root)
    answer = subject.do(lambda: subject.client.get_response(start, range_end=end))
    revision = answer.header.revision
    assert subject.names() == (["a", "b", "c"], False)
    assert subject.names(limit=2) == (["a", "b"], True)
    subject.txn([], [Delete(subject.key("a"))])
    put(subject, "d")
    assert subject.names() == (["b", "c", "d"], False)
    assert subject.names(revision=revision) == (["a", "b", "c"], False)
    changed = subject.do(
        lambda: subject.client.get_range_response(
            start, end, min_mod_revision=revision + 1, keys_only=True
        )
    )
    assert [(bytes(kv.key), bytes(kv.value)) for kv in changed.kvs] == [(subject.key("d"), b"")]
    assert changed.count == 3, "of all keys, whenever they were written"
    assert subject.names(revision=revision + 1000) == "StoreUnavailableError"


def test_nothing_done_is_no_revision(subject: Subject) -> None:
    put(subject, "a")
    key = subject.key("a")
    before = subject.do(lambda: subject.client.get_response(key)).header.revision
    subject.txn([], [Delete(subject.key("nobody"))])
    subject.txn([Mod(key) == 0], [Put(key, b"y")])
    assert subject.do(lambda: subject.client.get_response(key)).header.revision == before


def test_watch_tells_history_in_order_from_its_revision_on(subject: Subject) -> None:
    put(subject, "before")
    first = subject.revision() + 1
    lease_id = subject.do(lambda: subject.client.lease(60)).id
    put(subject, "a", lease=lease_id)
    put(subject, "b", lease=lease_id)
    put(subject, "a", b"y", lease=lease_id)
    subject.txn([], [Delete(subject.key("nobody"))])
    subject.txn([], [Put(subject.key("c"), b"z"), Delete(subject.key("before"))])
    subject.do(lambda: subject.client.revoke_lease(lease_id))
    assert subject.watched(first, 7) == [
        ("put", "a", b"x", first),
        ("put", "b", b"x", first + 1),
        ("put", "a", b"y", first + 2),
        ("put", "c", b"z", first + 3),
        ("del", "before", b"", first + 3),
        ("del", "a", b"", first + 4),
        ("del", "b", b"", first + 4),
    ]
    assert subject.watched(first + 4, 2) == [
        ("del", "a", b"", first + 4),
        ("del", "b", b"", first + 4),
    ]


def test_what_is_compacted_can_be_neither_read_nor_watched(subject: Subject) -> None:
    for value in (b"1", b"2", b"3"):
        put(subject, "a", value)
    last = subject.revision()
    assert subject.do(lambda: subject.compact(last + 1000)) == "StoreUnavailableError"
    subject.do(lambda: subject.compact(last - 1))
    assert subject.do(lambda: subject.compact(last - 1)) == "CompactedError"
    assert subject.names(revision=last - 2) == "CompactedError"
    assert subject.names(revision=last - 1) == (["a"], False)
    assert subject.watched(last - 2, 1) == "CompactedError"
    assert subject.watched(last - 1, 2) == [
        ("put", "a", b"2", last - 1),
        ("put", "a", b"3", last),
    ]
