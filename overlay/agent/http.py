"""``/healthz``, ``/readyz`` and ``/metrics`` over HTTP, on loopback unless told otherwise."""

import http.server
import json
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from overlay.agent.listen import clients, stop_listening
from overlay.agent.metrics import render_metrics
from overlay.agent.status import Status, stranded_text
from overlay.model.address import IPAddress
from overlay.model.attachment import Attachment

log = logging.getLogger(__name__)

IsAlive = Callable[[], bool]
Stranded = Callable[[], Sequence[Attachment]]


class _Handler(http.server.BaseHTTPRequestHandler):
    status: ClassVar[Status]
    is_alive: ClassVar[IsAlive]
    stranded: ClassVar[Stranded]
    server_version = "overlayd"
    sys_version = ""
    timeout = 10  # seconds for one client

    def do_GET(self) -> None:
        """Answer one of the three pages."""
        path = self.path.partition("?")[0]
        if path == "/healthz":
            alive = type(self).is_alive()
            self._answer(200 if alive else 503, "text/plain", "ok\n" if alive else "stuck\n")
        elif path == "/readyz":
            self._answer_ready()
        elif path == "/metrics":
            kind, text = render_metrics(self.status, len(type(self).stranded()))
            self._answer(200, kind, text)
        else:
            self._answer(404, "text/plain", "there are /healthz, /readyz and /metrics\n")

    def _answer_ready(self) -> None:
        snapshot = self.status.get()
        stranded = [stranded_text(attachment, snapshot) for attachment in type(self).stranded()]
        document: dict[str, Any] = {
            "ready": snapshot.is_ready,
            "phase": snapshot.phase,
            "reasons": list(snapshot.reasons),
            "warnings": [*snapshot.warnings, *stranded],
            "store_connected": snapshot.is_store_connected,
        }
        text = json.dumps(document, indent=2) + "\n"
        self._answer(200 if snapshot.is_ready else 503, "application/json", text)

    def _answer(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep probes out of the log."""
        log.debug("http: " + format, *args)  # noqa: G003


class HttpServer:
    """Serves in a thread of its own until ``close``. Raises OSError when the port is taken."""

    def __init__(
        self,
        address: IPAddress,
        port: int,
        status: Status,
        is_alive: IsAlive,
        stranded: Stranded,
    ) -> None:
        handler = type(
            "_BoundHandler",
            (_Handler,),
            {
                "status": status,
                "is_alive": staticmethod(is_alive),
                "stranded": staticmethod(stranded),
            },
        )
        server = type(
            "_Server",
            (http.server.ThreadingHTTPServer,),
            {
                "address_family": socket.AF_INET if address.version == 4 else socket.AF_INET6,
                "daemon_threads": True,
            },
        )
        self._server = server((str(address), port), handler)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        stop_listening(self._server.socket)
        self._thread.join()

    def _serve(self) -> None:
        # Not serve_forever: that wakes up twice a second, and ends as late.
        for client, address in clients(self._server.socket):
            self._server.process_request(client, address)
