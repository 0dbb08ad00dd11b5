"""TCP proxies on loopback: one slow or silent as a half-open connection, one loses answers."""

import contextlib
import socket
import threading
from typing import Self


class SilentProxy:
    """Forwards to ``port``, each way ``delay_s`` late; connections stay open when it swallows."""

    def __init__(self, port: int, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._swallowed: set[socket.socket] = set()
        self._open: list[socket.socket] = []
        self.accepted = 0
        self.ended = 0  # by the client
        self.is_black_hole = False  # for connections that are taken from now on

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone does not wake a thread that waits in accept.
        for sock in (self._server, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def swallow(self) -> None:
        """Stop forwarding on the connections there are; new ones work."""
        self._swallowed.update(self._open)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.accepted += 1
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                if self.is_black_hole:
                    self._swallowed.update((client, server))
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        self._pump(client, server)
        self.ended += 1

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                threading.Event().wait(self._delay_s)  # how far away the other end is
                if source not in self._swallowed:
                    sink.sendall(data)
            if source not in self._swallowed:
                sink.shutdown(socket.SHUT_RDWR)


class LossyProxy:
    """Forwards to ``port``; when told, it lets a request through and loses the answer."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_armed = False
        self.lost = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for sock in (self._server, *self._open):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def lose_an_answer(self) -> None:
        """Forward the next bytes of any client, drop what comes back, and cut the connection."""
        self._is_armed = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._target))
            doomed = threading.Event()  # what the server says from now on is lost
            with server:
                with self._lock:
                    self._open |= {client, server}
                back = threading.Thread(
                    target=self._answers, args=(server, client, doomed), daemon=True
                )
                back.start()
                try:
                    self._requests(client, server, doomed)
                finally:
                    back.join(10)
                    with self._lock:
                        self._open -= {client, server}

    def _requests(
        self, client: socket.socket, server: socket.socket, doomed: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._is_armed:
                    self._is_armed = False
                    doomed.set()
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answers(
        self, server: socket.socket, client: socket.socket, doomed: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if doomed.is_set():
                    self.lost += 1
                    break
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
