"""One watch call to etcd: its answers as they come, and nobody who polls for them.

gRPC's blocking half wakes up ten times a second for each open stream and five
times more for its channel; its asyncio half waits in the kernel. Watching
nothing for 60 s cost 0.10 s of CPU with the one and 0.02 s with the other
(gRPC 1.85, November 2026). So streams have a loop and connections of their own.
"""

import asyncio
import queue
import threading
from concurrent.futures import CancelledError
from typing import Any, Final, Self, TypeAlias

import etcd3.etcdrpc as rpc
import grpc.aio

from overlay.store.base import StopSignal, StoreAccessError, StoreError, StoreUnavailableError
from overlay.store.etcd_config import parse_endpoint
from overlay.store.etcd_connection import CHANNEL_OPTIONS, Member
from overlay.store.etcd_errors import (
    CALL_ERRORS,
    CompactedError,
    StaleConnectionError,
    TokenError,
    translate,
)
from overlay.store.etcd_keys import prefix_range
from overlay.store.tcp_keepalive import keep_alive

_LOOP_HANGS_S: Final = 60.0  # above the deadline of any call

Answer: TypeAlias = Any  # etcdrpc.WatchResponse, which has no types


class _Loop:
    """The loop of all streams of the process, in a thread that ends with the process.

    One for all: gRPC's asyncio half has one queue of completions a process,
    and loops that share it wake one another for nothing (grpc#25364).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        """Return the loop; the first one who asks starts it."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._run, name="etcd-streams", daemon=True).start()
            return self._loop

    def _run(self) -> None:
        assert self._loop is not None  # noqa: S101 - by get
        # Held for ever: or the queue would be taken down and made anew with each stream.
        self._loop.call_soon(grpc.aio.init_grpc_aio)
        self._loop.run_forever()


_LOOP: Final = _Loop()


class GrpcStreams:
    """Opens the streams of one watch, one after another, and ends their waits for ``stop``."""

    def __init__(self) -> None:
        self._stream: GrpcStream | None = None
        self._stop: StopSignal | None = None

    def __call__(self, member: Member, root: str, revision: int) -> "GrpcStream":
        """Return a stream of the changes of all keys below ``root`` from ``revision`` on."""
        self._stream = GrpcStream(member, root, revision, self)
        return self._stream

    def listen(self, stop: StopSignal) -> None:
        """See to it that the stream that is open then stops waiting once ``stop`` is set."""
        if self._stop is not stop:
            self._stop = stop
            threading.Thread(target=self._await, args=(stop,), name="stop", daemon=True).start()

    def _await(self, stop: StopSignal) -> None:
        stop.wait()
        if self._stream is not None:
            self._stream.wake()


class GrpcStream:
    """One watch call on a connection of its own, ended with its member's client: a ``Stream``."""

    def __init__(self, member: Member, root: str, revision: int, streams: GrpcStreams) -> None:
        self._url = member.url
        self._member = member
        self._streams = streams
        self._answers: queue.SimpleQueue[Answer | StoreError | None] = queue.SimpleQueue()
        start, end = prefix_range(root)
        create = rpc.WatchCreateRequest(key=start, range_end=end, start_revision=revision)
        request = rpc.WatchRequest(create_request=create)
        metadata = (*(member.client.metadata or ()), ("hasleader", "true"))
        member.calls.add(self._fail)
        self._channel: grpc.aio.Channel | None = None
        self._task = asyncio.run_coroutine_threadsafe(self._fetch(request, metadata), _LOOP.get())
        if member.is_closed:  # perhaps just now, too early for our ``_fail`` to be known
            self._fail()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._member.calls.discard(self._fail)
        self._task.cancel()

    def wake(self) -> None:
        """Make ``next`` return; any thread may call it."""
        self._answers.put(None)

    def next(self, timeout_s: float, stop: StopSignal) -> Answer | None:
        """Return the next answer. See ``Stream``."""
        self._streams.listen(stop)
        if stop.is_set():
            return None
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            if self._task.done() and not self._task.cancelled():
                self._task.result()  # raises a fault of ours
            return None
        if isinstance(answer, StoreError):
            raise answer
        if answer is not None and answer.canceled:
            raise canceled(answer, self._url)
        return answer

    def waiting(self) -> Answer | None:
        """Return an answer that is there already, or None. See ``Stream``."""
        try:
            answer = self._answers.get_nowait()
        except queue.Empty:
            return None
        if isinstance(answer, StoreError) or (answer is not None and answer.canceled):
            # What came before an error counts first.
            self._answers.put(answer)
            return None
        return answer

    def read(self, key: str) -> Answer:
        """Return the answer to a linearizable read. See ``Stream``."""
        reading = asyncio.run_coroutine_threadsafe(self._read(key), _LOOP.get())
        try:
            # The call has a deadline of its own; this is for a loop that hangs.
            return reading.result(_LOOP_HANGS_S)
        except (CancelledError, grpc.aio.UsageError) as exc:
            raise self._closed() from exc
        except TimeoutError as exc:
            reading.cancel()
            msg = f"etcd at {self._url}: no answer, and no error, within {_LOOP_HANGS_S:.0f} s"
            raise StaleConnectionError(msg) from exc

    async def _read(self, key: str) -> Answer:
        if self._channel is None:
            raise self._closed()
        request = rpc.RangeRequest(key=key.encode(), keys_only=True)
        client = self._member.client
        return await rpc.KVStub(self._channel).Range(
            request, timeout=client.timeout, metadata=client.metadata
        )

    def _closed(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"etcd at {self._url}: the connection was closed")

    def _fail(self) -> None:
        """End the call, for its member was closed."""
        self._answers.put(self._closed())
        self._task.cancel()

    async def _fetch(self, request: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        try:
            async with _channel(self._member) as channel:
                self._channel = channel
                call = rpc.WatchStub(channel).Watch(metadata=metadata)
                # Never the last request: etcd takes their end for the end of the watch.
                await call.write(request)
                while (answer := await call.read()) is not grpc.aio.EOF:
                    self._answers.put(answer)
                    if answer.created:
                        keep_alive(parse_endpoint(self._url).port)
            error: StoreError = StoreUnavailableError(f"etcd at {self._url} ended the watch")
        except CALL_ERRORS as exc:
            error = translate(exc, self._url)
        except (asyncio.InvalidStateError, ValueError) as exc:  # the call ended before its request
            error = StoreUnavailableError(f"etcd at {self._url}: {exc}")
        self._answers.put(error)


def _channel(member: Member) -> grpc.aio.Channel:
    address = parse_endpoint(member.url)
    target = f"{address.host}:{address.port}"
    if not address.is_secure:
        return grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, member.credentials, CHANNEL_OPTIONS)


def canceled(answer: Answer, url: str) -> StoreError:
    """Return what it means that the etcd at ``url`` ended a watch by ``answer``."""
    reason = answer.cancel_reason or "no reason given"
    shown = f"etcd at {url} canceled the watch: {reason}"
    if answer.compact_revision:
        return CompactedError(shown)
    if "ermission" in reason:
        return StoreAccessError(f"{shown}; give the role of --etcd-username read on --etcd-prefix")
    if "auth" in reason:
        return TokenError(shown)
    return StoreUnavailableError(shown)
