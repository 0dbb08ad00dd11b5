"""``/healthz``, ``/readyz``, ``/metrics`` and the status page ``/`` over HTTP.

On loopback unless told otherwise; the page on loopback in any case.
"""

import socket
from typing import TYPE_CHECKING, Final

from overlay.agent.listen import Crew, stop_listening
from overlay.agent.status import Status
from overlay.model.address import IPAddress

if TYPE_CHECKING:
    from overlay.agent.http_pages import Extras, Stranded, Stuck

_BACKLOG: Final = 128


class HttpServer:
    """Serves any number of clients until ``close``. Raises OSError when the port is taken."""

    def __init__(
        self,
        address: IPAddress,
        port: int,
        status: Status,
        stuck: "Stuck",
        stranded: "Stranded",
        extras: "Extras",
        *,
        names: bool = False,
    ) -> None:
        def answer(client: socket.socket) -> None:
            # With the first client: http.server alone takes 15 ms.
            from overlay.agent.http_pages import handler

            handler(status, stuck, stranded, extras, names=names)(client)

        self._socket = _listen(address, port)
        Crew(self._socket, answer, "http")

    def close(self) -> None:
        """Stop serving."""
        stop_listening(self._socket)


def _listen(address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
