"""A TCP proxy that makes a server as far away as a number of seconds.

Each piece is passed on ``delay_s`` after it came, in either direction, and
pieces overtake no other: a long line, not a slow one. A round trip takes
twice the delay more.
"""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, Self

_PIECE: Final = 1 << 16  # bytes
_UNDER_WAY: Final = 4096  # pieces in one direction, before the sender has to wait

Piece = tuple[float, bytes]  # when it is due, and an empty one at the end


class DelayProxy:
    """Listens at ``address`` for a server; threads and sockets belong to the maker's namespace."""

    def __init__(
        self,
        address: tuple[str, int],
        target: tuple[str, int],
        delay_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._target = target
        self._delay_s = delay_s
        self._clock = clock
        self._sleep = sleep
        self._server = socket.create_server(address)
        self._open: set[socket.socket] = set()
        self.port: int = self._server.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="delay", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake a thread that waits in accept.
        for sock in (self._server, *tuple(self._open)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                try:
                    server = socket.create_connection(self._target)
                except OSError:  # the server is down: the client sees it close
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    line: queue.Queue[Piece] = queue.Queue(_UNDER_WAY)
                    for work, end in ((self._read, source), (self._write, sink)):
                        threading.Thread(target=work, args=(end, line), daemon=True).start()

    def _read(self, source: socket.socket, line: queue.Queue[Piece]) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(_PIECE)
            except OSError:
                data = b""
            line.put((self._clock() + self._delay_s, data))

    def _write(self, sink: socket.socket, line: queue.Queue[Piece]) -> None:
        is_whole = True
        while True:
            due, data = line.get()
            if (early_s := due - self._clock()) > 0:
                self._sleep(early_s)
            with contextlib.suppress(OSError):
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                elif is_whole:
                    sink.sendall(data)
                    continue
            if not data:
                return
            is_whole = (
                False  # the rest is read and thrown away, so that the reader comes to its end
            )
