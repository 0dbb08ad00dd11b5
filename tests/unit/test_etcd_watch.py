"""A watch that finds no stream to follow: how often it lists, and what it says of that."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import pytest

from overlay.store.base import StopSignal, StoreError, StoreUnavailableError
from overlay.store.etcd_errors import CompactedError
from overlay.store.etcd_keys import list_all
from overlay.store.etcd_table import LeaseReader, LeaseTable, Listing
from overlay.store.etcd_watch import EtcdWatch

ROOT = "/test/"
HOUR_S = 3600.0


class Clock:
    """Virtual time, and the signal to stop once it is over: each wait passes at once."""

    def __init__(self, until: float) -> None:
        self.now, self._until = 0.0, until

    def is_set(self) -> bool:
        return self.now >= self._until

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


class Etcd:
    """Listings at revision 10; ``stream`` says what becomes of each watch call."""

    attempt_s = 5.0
    reconnects = 0

    def __init__(self, clock: Clock, stream: Callable[["Stream"], Any]) -> None:
        self.clock, self.stream = clock, stream
        self.listings = self.streams = 0
        self.list = self.listing  # what a watch lists with

    def member(self) -> Self:
        return self

    def failed(self, _member: object, _error: StoreError) -> None:
        """Turn to the next one: there is none."""

    def on_member(self, _member: object, action: Callable[[Any], Any]) -> Any:
        return action(self)

    def get_response(self, _key: str, *, keys_only: bool) -> Any:
        assert keys_only
        return SimpleNamespace(header=header(10))

    def listing(self, _connection: object, _root: str) -> Listing:
        self.listings += 1
        self.clock.now += 0.002
        return Listing(10, 1, ())

    def watch(self) -> list[str | None]:
        """Watch until the clock says stop; return the troubles that were told."""
        told: list[str | None] = []
        EtcdWatch(
            self,  # type: ignore[arg-type]  # as much of a connection as is asked here
            LeaseTable(LeaseReader(ROOT)),
            ROOT,
            listing=self.list,
            keys_at=lambda *_: (),
            open_stream=lambda *_: Stream(self),
            clock=lambda: self.clock.now,
            uniform=lambda _least, most: most,
        ).run(
            lambda _view: None,
            lambda error: told.append(None if error is None else str(error)),
            self.clock,
        )
        return told


class Stream:
    """One watch call: an answer that says it was created, then what ``Etcd.stream`` makes."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd, self.answers = etcd, 0
        etcd.streams += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def next(self, timeout_s: float, stop: StopSignal) -> Any:
        del timeout_s, stop
        self.etcd.clock.now += 0.001
        self.answers += 1
        return self.etcd.stream(self)

    def waiting(self) -> None:
        return None

    def read(self, _key: str) -> Any:
        return SimpleNamespace(header=header(10))


def header(revision: int) -> Any:
    return SimpleNamespace(revision=revision, cluster_id=1)


def created(revision: int) -> Any:
    return SimpleNamespace(header=header(revision), created=True, events=[])


def silence(stream: Stream) -> None:
    stream.etcd.clock.now += 15.0


def test_stream_of_a_member_that_lags_is_asked_again_ever_later_and_told() -> None:
    """Behind one address there may be several members: listings come from another."""
    etcd = Etcd(Clock(HOUR_S), lambda _: created(8))
    (told,) = etcd.watch()
    assert etcd.listings < HOUR_S, "none would be heard of sooner by listing all the time"
    assert etcd.listings > HOUR_S / 10, "but each listing brings news"
    assert told is not None
    assert "put back from revision 10 to 8" in told
    assert "members" in told, "what is likelier by now"


def test_member_that_catches_up_ends_the_trouble() -> None:
    def stream(call: Stream) -> Any:
        if call.answers > 1:
            return silence(call)
        return created(8 if call.etcd.clock.now < 20 else 10)

    etcd = Etcd(Clock(60.0), stream)
    first, second = etcd.watch()
    assert (first is None, second) == (False, None)


def test_one_put_back_store_is_no_trouble() -> None:
    def stream(call: Stream) -> Any:
        if call.answers > 1:
            return silence(call)
        return created(8 if call.etcd.streams == 1 else 10)

    etcd = Etcd(Clock(60.0), stream)
    assert etcd.watch() == []
    assert etcd.listings == 2


@pytest.mark.parametrize(
    "error", [StoreUnavailableError("it ended"), CompactedError("compacted")], ids=type
)
def test_streams_that_end_as_soon_as_they_begin_are_opened_ever_later(error: StoreError) -> None:
    def stream(call: Stream) -> Any:
        if call.answers > 1:
            raise error
        return created(10)

    etcd = Etcd(Clock(HOUR_S), stream)
    etcd.watch()
    assert HOUR_S / 10 < etcd.streams < 2 * HOUR_S


def test_connections_made_anew_on_purpose_are_followed_at_once() -> None:
    """A node whose address changes again and again is not told ever later of what others do."""

    def stream(call: Stream) -> Any:
        if call.answers > 1:
            call.etcd.reconnects += 1
            message = "the connection was closed"
            raise StoreUnavailableError(message)
        return created(10)

    etcd = Etcd(Clock(60.0), stream)
    etcd.watch()
    assert etcd.streams > 60.0 / 0.1


def test_pages_that_come_from_several_stores_are_told_and_asked_for_ever_later() -> None:
    """One address leads to members of two clusters in turn, so that no listing is ever whole."""
    etcd = Etcd(Clock(HOUR_S), lambda _: created(10))
    pages = 0

    def read(_action: object) -> Any:
        nonlocal pages
        pages += 1
        etcd.clock.now += 0.001
        found = SimpleNamespace(revision=10, cluster_id=1 + pages % 2)
        return SimpleNamespace(header=found, kvs=(), more=False)

    etcd.list = lambda *_: list_all(SimpleNamespace(read=read), ROOT)  # type: ignore[arg-type]
    told = etcd.watch()
    assert [text for text in told if text is None] == []
    assert "members of one cluster" in str(told[-1])
    assert HOUR_S / 10 < pages < 6 * HOUR_S
