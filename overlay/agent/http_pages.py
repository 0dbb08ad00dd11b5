"""What the agent answers over HTTP: probes, metrics, the status page, other nodes' questions.

The page and what names pods, peers and policies is for this node alone, wherever
the rest is served; names in metrics for others too, where a flag says so.
"""

import contextlib
import http.server
import json
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from overlay.agent.ask import MOST_BYTES, Answer
from overlay.agent.metrics import render_metrics
from overlay.agent.page import HEADERS, REFUSAL, is_loopback, may_see
from overlay.agent.status import Status, stranded_text
from overlay.mesh.ask import PATH
from overlay.model.attachment import Attachment

if TYPE_CHECKING:
    from prometheus_client.core import Metric

log = logging.getLogger(__name__)

Stuck = Callable[[], Sequence[str]]  # threads that hang, in words
Stranded = Callable[[], Sequence[Attachment]]


class Extras(Protocol):
    """What other parts show and answer here."""

    def page(self) -> str:
        """Return the status page."""

    def metrics(self) -> "Iterable[Metric]":
        """Return metrics beside those of the snapshot."""

    def challenge(self) -> Answer:
        """Return a nonce for a question of another node."""

    def ask(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return the answer to a question of another node."""


class _Handler(http.server.BaseHTTPRequestHandler):
    status: ClassVar[Status]
    stuck: ClassVar[Stuck]
    stranded: ClassVar[Stranded]
    extras: ClassVar[Extras]
    names: ClassVar[bool]
    server_version = "overlayd"
    sys_version = ""
    timeout = 10  # seconds for one client

    def do_GET(self) -> None:
        """Answer one of the pages."""
        path = self.path.partition("?")[0]
        if path == "/healthz":
            stuck = type(self).stuck()
            text = f"stuck: {', '.join(stuck)}\n" if stuck else "ok\n"
            self._answer(503 if stuck else 200, "text/plain", text)
        elif path == "/readyz":
            self._answer_ready()
        elif path == "/metrics":
            stranded = len(type(self).stranded())
            names = self._is_here() or type(self).names
            kind, text = render_metrics(self.status, stranded, self.extras.metrics, names=names)
            self._answer(200, kind, text)
        elif path == PATH:
            self._reply(self.extras.challenge())
        elif path == "/" and not may_see(self.client_address[0], self.headers.get("Host")):
            self._answer(403, "text/plain", REFUSAL)
        elif path == "/":
            self._answer(200, "text/html; charset=utf-8", self.extras.page(), HEADERS)
        else:
            self._answer(404, "text/plain", "there are /, /healthz, /readyz and /metrics\n")

    def do_POST(self) -> None:
        """Answer a question of another node."""
        length = self.headers.get("Content-Length", "")
        if not self.path.startswith(f"{PATH}/") or not length.isdecimal():
            self._answer(404, "text/plain", f"questions go to {PATH}/CALL\n")
        elif len(length) > 9 or int(length) > MOST_BYTES:
            self._answer(413, "text/plain", f"at most {MOST_BYTES} bytes\n")
        else:
            body = self.rfile.read(int(length))
            headers = {name.title(): value for name, value in self.headers.items()}
            self._reply(self.extras.ask(self.path, headers, body))

    def _reply(self, answer: Answer) -> None:
        self._answer(answer.status, "application/json", answer.body.decode(), answer.headers)

    def _answer_ready(self) -> None:
        snapshot = self.status.get()
        document: dict[str, Any] = {
            "ready": snapshot.is_ready,
            "phase": snapshot.phase,
            "store_connected": snapshot.is_store_connected,
        }
        if self._is_here():  # they name pods, addresses and paths
            stranded = [stranded_text(each, snapshot) for each in type(self).stranded()]
            document["reasons"] = list(snapshot.reasons)
            document["warnings"] = [*snapshot.warnings, *stranded]
        text = json.dumps(document, indent=2) + "\n"
        self._answer(200 if snapshot.is_ready else 503, "application/json", text)

    def _is_here(self) -> bool:
        return is_loopback(self.client_address[0])

    def _answer(
        self, code: int, kind: str, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        body = text.encode(errors="replace")
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep probes out of the log."""
        log.debug("http: " + format, *args)  # noqa: G003


def handler(
    status: Status, stuck: Stuck, stranded: Stranded, extras: Extras, *, names: bool
) -> Callable[[socket.socket], None]:
    """Return what answers one client, and closes its socket."""
    bound = type(
        "_BoundHandler",
        (_Handler,),
        {
            "status": status,
            "stuck": staticmethod(stuck),
            "stranded": staticmethod(stranded),
            "extras": extras,
            "names": names,
        },
    )

    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):  # one that went away
            bound(client, client.getpeername(), None)
            client.shutdown(socket.SHUT_WR)

    return answer
