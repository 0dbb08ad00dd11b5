"""An API server of our own, over HTTPS: any resource, watches, permissions, and faults on order.

It speaks what https://kubernetes.io/docs/reference/using-api/api-concepts/
says of list, watch, bookmarks, 410 and optimistic locking, for whatever
resource a client names: nodes, pods, secrets, networkpolicies.
"""

import contextlib
import http.server
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.kube.certificates import Authority
from tests.kube.objects import Event, Object, Objects, Place, RefusedError, Selector
from tests.kube.patches import patched

TOKEN = "a-token-of-the-test"
_PATH = re.compile(
    r"/(?:api/v1|apis/[a-z0-9.-]+/v[a-z0-9]+)(?:/namespaces/(?P<namespace>[a-z0-9-]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[a-z0-9.-]+))?(?:/(?P<sub>status))?\Z"
)
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Request:
    verb: str  # as in a role
    place: Place
    name: str | None
    sub: str | None
    query: dict[str, str]

    @property
    def resource(self) -> str:
        return f"{self.place.resource}/{self.sub}" if self.sub else self.place.resource


@dataclass
class Fault:
    """What happens to the next ``times`` requests that have ``verb`` (any where it is empty).

    ``kind``: an HTTP status such as ``500`` or ``429``; ``reset``, ``hole``
    (no answer at all), ``slow``, ``broken`` (half a JSON document), ``page``
    (a proxy's HTML).
    """

    kind: str
    verb: str = ""
    times: int = 1
    skip: int = 0  # so many requests pass before


class ApiServer:
    """Serves ``objects`` until ``close``; tests write into them directly, as others would."""

    def __init__(self, authority: Authority, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.objects = Objects()
        self.authority = authority
        self.tokens = {TOKEN}
        self.forbidden: set[tuple[str, str]] = set()  # verb and resource
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.bookmark_s = 0.5
        self.is_silent = False  # watches say nothing more, and do not end: a half-open connection
        self.begins_with_gone_event = False
        self.before: Callable[[Request], None] | None = None  # is told of each request in time
        self.watches = 0  # that are open
        self.bookmarks = 0  # that were sent
        self._address = address
        self._server: _Server | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"https://{self._address[0]}:{self._address[1]}"

    def start(self) -> None:
        """Listen, at the same port as before after a stop."""
        self._server = _Server(self, self._address)
        self._address = (self._address[0], self._server.server_port)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """End every connection, as a server that dies does; ``objects`` stay."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.cut()

    close = stop

    def asked(self, verb: str, resource: str) -> list[Request]:
        """Return the requests so far of one verb and resource."""
        return [r for r in list(self.requests) if (r.verb, r.resource) == (verb, resource)]

    def fault_for(self, request: Request) -> str | None:
        for fault in list(self.faults):
            if fault.verb not in {"", request.verb}:
                continue
            if fault.skip:
                fault.skip -= 1
            else:
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault.kind
        return None

    @property
    def is_open(self) -> bool:
        return self._server is not None

    def kubeconfig(self, path: Path, token: str = TOKEN) -> Path:
        """Write a kubeconfig for this server."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority": str(self.authority.ca),
                    },
                }
            ],
            "users": [{"name": "test", "user": {"token": token}}],
        }
        path.write_text(json.dumps(document))
        return path

    def account(self, folder: Path, token: str = TOKEN, namespace: str = "overlay") -> Path:
        """Write what Kubernetes mounts into a pod as its account."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(token)
        (folder / "namespace").write_text(namespace)
        (folder / "ca.crt").write_bytes(self.authority.ca.read_bytes())
        return folder


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, api: ApiServer, address: tuple[str, int]) -> None:
        handler = type("_BoundHandler", (_Handler,), {"api": api, "server_of": self})
        super().__init__(address, handler)
        self._context = api.authority.server_context()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def finish_request(self, request: Any, client_address: Any) -> None:
        # The handshake belongs to the client's own thread: one that never comes must not block.
        request.settimeout(10)
        with self._lock:
            self._open.add(request)
        try:
            wrapped = self._context.wrap_socket(request, server_side=True)
        except (OSError, ssl.SSLError):
            with self._lock:
                self._open.discard(request)
            return
        with self._lock:
            self._open.discard(request)
            self._open.add(wrapped)
        try:
            super().finish_request(wrapped, client_address)
        finally:
            with self._lock:
                self._open.discard(wrapped)
            with contextlib.suppress(OSError):
                wrapped.close()

    def cut(self) -> None:
        """End all connections at once."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(each, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients end as they like."""


class _Handler(http.server.BaseHTTPRequestHandler):
    api: ClassVar[ApiServer]
    server_of: ClassVar[_Server]
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._serve("get")

    def do_PATCH(self) -> None:
        self._serve("patch")

    def do_POST(self) -> None:
        self._serve("create")

    def do_DELETE(self) -> None:
        self._serve("delete")

    def _serve(self, verb: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        try:
            request = self._parse(verb)
            self.api.requests.append(request)
            kind = self.api.fault_for(request)
            if kind is not None and self._spoil(kind):
                return
            self._admit(request)
            if self.api.before is not None:
                self.api.before(request)
            if request.verb == "watch":
                self._watch(request)
                return
            self._answer(200 if verb != "create" else 201, self._act(request, body))
        except RefusedError as exc:
            retry = {"Retry-After": "1"} if exc.code == 429 else {}
            self._answer(exc.code, exc.status(), retry)

    def _parse(self, verb: str) -> Request:
        parts = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(parts.query).items()}
        match = _PATH.match(parts.path)
        if match is None:
            raise RefusedError(404, "NotFound", "the server could not find the requested resource")
        if verb == "get" and match["name"] is None:
            verb = "watch" if query.get("watch") in {"true", "1"} else "list"
        place = Place(match["resource"], match["namespace"])
        return Request(verb, place, match["name"], match["sub"], query)

    def _spoil(self, kind: str) -> bool:
        """Do what a fault says; return whether that was the answer."""
        if kind.isdigit():
            raise RefusedError(int(kind), "Fault", f"a fault of the test: {kind}")
        if kind == "slow":
            time.sleep(1.0)
            return False
        if kind == "page":
            self._send(502, b"<html>bad gateway</html>", "text/html")
            return True
        if kind == "broken":
            self._send(200, b'{"metadata": {"resourceVersion": "5', "application/json")
            return True
        if kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return True
        while self.api.is_open:  # "hole": until nobody is there any more
            time.sleep(_POLL_S)
        self.close_connection = True
        return True

    def _admit(self, request: Request) -> None:
        given = self.headers.get("Authorization", "")
        if given.removeprefix("Bearer ") not in self.api.tokens:
            raise RefusedError(401, "Unauthorized", "Unauthorized")
        if (request.verb, request.resource) in self.api.forbidden:
            raise RefusedError(
                403,
                "Forbidden",
                f'{request.resource} is forbidden: User "system:serviceaccount:overlay:overlay" '
                f'cannot {request.verb} resource "{request.resource}" at the cluster scope',
            )

    def _act(self, request: Request, body: bytes) -> Object:
        objects, place = self.api.objects, request.place
        if request.verb == "list":
            return self._list(request)
        if request.verb == "create":
            return objects.create(place, json.loads(body))
        assert request.name is not None
        if request.verb == "get":
            return objects.get(place, request.name)
        if request.verb == "delete":
            return objects.delete(place, request.name)
        patch = json.loads(body)
        with objects.changed:
            before = objects.get(place, request.name)
            after = patched(before, patch, self.headers.get("Content-Type", ""))
            if request.sub == "status":
                # Metadata too: flannel's annotations come that way.
                meta, status = after["metadata"], after.get("status", {})
                after = {**before, "metadata": meta, "status": status}
            elif "status" in before:
                after["status"] = before["status"]
            expected = None
            if isinstance(patch, dict):
                expected = patch.get("metadata", {}).get("resourceVersion")
            return objects.replace(place, request.name, after, expected)

    def _list(self, request: Request) -> Object:
        found, revision, token, left = self.api.objects.listing(
            request.place,
            _selector(request.query),
            int(request.query.get("limit") or 0),
            request.query.get("continue", ""),
        )
        meta: Object = {"resourceVersion": str(revision)}
        if token:
            meta |= {"continue": token, "remainingItemCount": left}
        return {"kind": "List", "apiVersion": "v1", "metadata": meta, "items": found}

    def _watch(self, request: Request) -> None:
        api, selector = self.api, _selector(request.query)
        revision = int(request.query.get("resourceVersion") or api.objects.revision)
        ends_at = time.monotonic() + int(request.query.get("timeoutSeconds") or 3600)
        if not api.begins_with_gone_event:
            api.objects.since(request.place, selector, revision)  # refused by its status
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        api.watches += 1
        try:
            for line in self._lines(request, selector, revision, ends_at):
                self._chunk(json.dumps(line).encode() + b"\n")
            self._chunk(b"")
        except (OSError, ssl.SSLError, ValueError):
            self.close_connection = True
        finally:
            api.watches -= 1

    def _lines(
        self, request: Request, selector: Selector, revision: int, ends_at: float
    ) -> Iterator[Object]:
        api = self.api
        bookmark_at = time.monotonic() + api.bookmark_s
        wants_bookmarks = request.query.get("allowWatchBookmarks") == "true"
        while time.monotonic() < ends_at and api.is_open:
            with api.objects.changed:
                api.objects.changed.wait(_POLL_S)
                try:
                    events: list[Event] = api.objects.since(request.place, selector, revision)
                except RefusedError as exc:
                    yield {"type": "ERROR", "object": exc.status()}
                    return
                newest = api.objects.revision
            if api.is_silent:
                continue
            for event in events:
                yield {"type": event.type, "object": event.object}
            revision = newest
            if wants_bookmarks and time.monotonic() >= bookmark_at:
                bookmark_at = time.monotonic() + api.bookmark_s
                mark = {"metadata": {"resourceVersion": str(revision)}}
                yield {"type": "BOOKMARK", "object": mark}
                api.bookmarks += 1

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _answer(self, code: int, document: Object, more: dict[str, str] | None = None) -> None:
        self._send(code, json.dumps(document).encode(), "application/json", more)

    def _send(self, code: int, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        with contextlib.suppress(OSError):
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (more or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep requests out of the log."""


def _selector(query: dict[str, str]) -> Selector:
    def pairs(text: str, *, equal: bool = True) -> tuple[tuple[str, str], ...]:
        parts = [part.partition("=") for part in text.split(",") if part]
        return tuple(
            (name.removesuffix("!"), value.lstrip("="))
            for name, _, value in parts
            if name.endswith("!") != equal
        )

    fields = query.get("fieldSelector", "")
    return Selector(
        pairs(fields), pairs(query.get("labelSelector", "")), pairs(fields, equal=False)
    )
