"""One watch call: its lines, fetched by a thread that ends with the call."""

import contextlib
import queue
import socket
import threading
from collections.abc import Mapping
from typing import Any, Final, Self

import httpx2

from overlay.store.base import StopSignal, StoreError
from overlay.store.kube_client import Kind, KubeClient
from overlay.store.kube_errors import Asked, KubeUnavailableError, no_answer

_STOP_POLL_S: Final = 0.2  # how late a stop may be noticed
_LONGEST_LINE: Final = 8 * 1024 * 1024  # bytes; etcd takes no object of more than 1.5 MB


class EndedError(KubeUnavailableError):
    """The server ended the watch, as it does after a while: take it up again."""


class KubeStream:
    """The lines of one watch; leaving the context ends the call.

    The constructor returns once the server has said yes. Raises what
    ``kube_errors`` makes of anything else.
    """

    def __init__(
        self,
        client: KubeClient,
        kind: Kind[Any],
        namespace: str | None,
        params: Mapping[str, str],
        idle_s: float,
    ) -> None:
        self._asked = Asked("watch", kind.plural, "", namespace or "")
        self._url = client.url
        self._lines: queue.SimpleQueue[bytes | StoreError] = queue.SimpleQueue()
        self._stack = contextlib.ExitStack()
        self._response = self._stack.enter_context(
            client.stream(kind, namespace=namespace, params=params, idle_s=idle_s)
        )
        network = self._response.extensions["network_stream"]
        self._socket: socket.socket = network.get_extra_info("socket")
        threading.Thread(target=self._fetch, name="kube-watch", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Not SSLSocket's own: that would take TLS off under the thread that reads. This one
        # wakes it, and the thread closes the response itself.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def next(self, timeout_s: float, stop: StopSignal) -> bytes | None:
        """Return the next line; None after ``timeout_s`` or when ``stop`` is set.

        Raises what ended the call.
        """
        while timeout_s > 0 and not stop.is_set():
            wait_s = min(timeout_s, _STOP_POLL_S)
            timeout_s -= wait_s
            try:
                line = self._lines.get(timeout=wait_s)
            except queue.Empty:
                continue
            if isinstance(line, StoreError):
                raise line
            return line
        return None

    def waiting(self) -> bytes | None:
        """Return a line that is there already, or None; an error stays for ``next``."""
        try:
            line = self._lines.get_nowait()
        except queue.Empty:
            return None
        if isinstance(line, StoreError):
            self._lines.put(line)  # nothing comes behind an error
            return None
        return line

    def _fetch(self) -> None:
        with self._stack:
            self._lines.put(self._read())

    def _read(self) -> StoreError:
        """Put lines until there are no more; return why."""
        begun = bytearray()
        try:
            for part in self._response.iter_bytes():
                begun += part
                if b"\n" in part:
                    *lines, rest = bytes(begun).split(b"\n")
                    begun = bytearray(rest)
                    for line in lines:
                        if line.strip():
                            self._lines.put(line)
                elif len(begun) > _LONGEST_LINE:
                    return self._error(f"a line of more than {_LONGEST_LINE} bytes")
        except (httpx2.HTTPError, httpx2.StreamError, OSError, ValueError) as exc:
            return no_answer(exc, self._asked, self._url)
        return EndedError(f"Kubernetes API at {self._url}: {self._asked}: ended by the server")

    def _error(self, text: str) -> StoreError:
        return KubeUnavailableError(f"Kubernetes API at {self._url}: {self._asked}: {text}")
