"""Clients of a listening socket, one after another, whatever happens to one of them."""

import errno
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

log = logging.getLogger(__name__)

_CLOSED: Final = {errno.EINVAL, errno.EBADF}
_BREATH_S: Final = 0.1  # until some client has gone, where there are no descriptors left


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
