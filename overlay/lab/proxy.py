"""A TCP proxy in one namespace that can be slow, or go silent on connections it keeps open."""

import asyncio
import contextlib
import ssl
import threading
import time
from typing import Final, Self
from urllib.parse import urlsplit

from overlay.lab import netns
from overlay.lab.errors import LabError

_CHUNK: Final = 65536  # bytes
_START_TIMEOUT_S: Final = 10.0


class Proxy:
    """Forwards ``port`` of the target's host to the target while the block lasts.

    ``delay_s`` is added to every answer: it is what the target is further
    away, there and back. With a ``context`` clients must speak TLS.
    """

    def __init__(
        self,
        namespace: str,
        target_url: str,
        port: int,
        delay_s: float = 0.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        place = urlsplit(target_url)
        self._namespace = namespace
        self._host, self._target_port = place.hostname or "", place.port
        self._port = port
        self._delay_s = delay_s
        self._context = context
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://{place.netloc.rpartition(':')[0]}:{port}"
        self._swallowed: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._is_up = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._enter, name=f"proxy-{port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._is_up.wait(_START_TIMEOUT_S):
            msg = f"the proxy on port {self._port} does not come up"
            raise LabError(msg)
        return self

    def __exit__(self, *_: object) -> None:
        loop, end = self._loop, self._end
        if loop is not None and end is not None:
            loop.call_soon_threadsafe(end.set)
        self._thread.join(_START_TIMEOUT_S)

    def swallow(self) -> None:
        """Stop forwarding on the connections there are; new ones work."""
        assert self._loop is not None  # noqa: S101 - the block has begun
        done = threading.Event()

        def mark() -> None:
            self._swallowed |= self._connections
            done.set()

        self._loop.call_soon_threadsafe(mark)
        done.wait(_START_TIMEOUT_S)

    def cut(self) -> None:
        """Close the connections there are; new ones work."""
        assert self._loop is not None  # noqa: S101 - the block has begun

        def close() -> None:
            for task in self._connections:
                task.cancel()

        self._loop.call_soon_threadsafe(close)

    def _enter(self) -> None:
        netns.inside(self._namespace, lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, self._host, self._port, ssl=self._context)
        self._is_up.set()
        await self._end.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio starts one for each connection
        self._connections.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._target_port)
        except OSError:
            writer.close()
            self._connections.discard(task)
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(task, reader, far_writer, 0.0))
                group.create_task(self._pump(task, far_reader, writer, self._delay_s))
        except* OSError:
            pass
        finally:
            self._connections.discard(task)
            for each in (writer, far_writer):
                each.close()

    async def _pump(
        self,
        connection: "asyncio.Task[None]",
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        delay_s: float,
    ) -> None:
        """Forward until either side closes, which closes the other side too."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def drain() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    raise ConnectionResetError
                if connection not in self._swallowed:
                    sink.write(data)
                    await sink.drain()

        forwarding = asyncio.create_task(drain())
        try:
            while True:
                data = await source.read(_CHUNK)
                waiting.put_nowait((time.monotonic() + delay_s, data))
                if not data:
                    await forwarding
        finally:
            forwarding.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await forwarding
