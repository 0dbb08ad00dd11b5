"""Clients of a listening socket, one after another, whatever happens to one of them."""

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

log = logging.getLogger(__name__)

_CLOSED: Final = {errno.EINVAL, errno.EBADF}
_BREATH_S: Final = 0.1  # until some client has gone, where there are no descriptors left
_SPARE: Final = 16  # threads that stay when there is nothing to do


def clients(listener: socket.socket) -> Iterator[tuple[socket.socket, Any]]:
    """Yield each client and its address until ``stop_listening``.

    A client that went while it waited is passed over, and so is a moment
    without free descriptors: accept(2) has errors that are not the socket's.
    """
    while True:
        try:
            yield listener.accept()
        except ConnectionAbortedError:
            continue
        except OSError as exc:
            if exc.errno in _CLOSED:
                return
            log.warning("a client waits: %s", exc.strerror)
            time.sleep(_BREATH_S)


def stop_listening(listener: socket.socket) -> None:
    """End ``clients`` of the socket, also where they are waited for, and close it."""
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


class Crew:
    """Threads that serve a socket's clients: any number at once, each thread one after another.

    One of them always waits for the next client, and takes it itself: to start a
    thread for each and hand the client over cost a tenth of attaching a pod
    (November 2026). They end with ``stop_listening``.
    """

    def __init__(
        self, listener: socket.socket, serve: Callable[[socket.socket], None], name: str
    ) -> None:
        self._listener, self._serve, self._name = listener, serve, name
        self._lock = threading.Lock()
        self._waiting = 0
        self._enlist()

    def _enlist(self) -> None:
        with self._lock:
            self._waiting += 1
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError as exc:  # no room for another one
            with self._lock:
                self._waiting -= 1
            log.warning("clients of %s wait for one another: %s", self._name, exc)

    def _work(self) -> None:
        for client, _ in clients(self._listener):
            with self._lock:
                self._waiting -= 1
                is_last = self._waiting == 0
            if is_last:
                self._enlist()
            self._serve(client)
            with self._lock:
                if self._waiting >= _SPARE:
                    return
                self._waiting += 1
