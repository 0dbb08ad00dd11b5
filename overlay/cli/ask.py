"""Asking another node's agent over HTTP, each side showing that it may read the store."""

import http.client
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from overlay.cli.control import AgentRefusedError, AgentUnreachableError, call
from overlay.cli.shapes import Shape, misfit
from overlay.mesh.ask import ASKER_HEADER, NONCE_HEADER, PATH, SEAL_HEADER, Exchange, is_answer
from overlay.mesh.seal import NONCE_BYTES
from overlay.model.address import IPAddress
from overlay.model.document import parse_json
from overlay.model.errors import UsageError
from overlay.model.lease import Lease, LeaseView

HTTP_PORT: Final = 9470  # --healthz-port of the node that is asked, unless told otherwise
_TIMEOUT_S: Final = 5.0
_LONGEST: Final = 64 << 20  # bytes of one answer
_SEALED: Final[Shape] = {"seal": str, "answer_key": str}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node's agent listens."""

    node: str
    address: IPAddress
    port: int = HTTP_PORT

    def __str__(self) -> str:
        return f"{self.node} ({self.address} port {self.port})"


class Sealer(Protocol):
    """Who has the fabric's key, and seals with it."""

    def seal(
        self, place: Place, name: str, nonce: bytes, asker: bytes, body: str
    ) -> tuple[bytes, bytes]:
        """Return the question's seal and the key of its answer. Raises OverlayError."""


@dataclass(frozen=True, slots=True)
class AgentSealer:
    """This node's agent, behind its socket: the key does not leave it."""

    socket: Path

    def seal(
        self, place: Place, name: str, nonce: bytes, asker: bytes, body: str
    ) -> tuple[bytes, bytes]:
        """Return what the agent says."""
        given = {
            "address": str(place.address),
            "call": name,
            "nonce": nonce.hex(),
            "asker": asker.hex(),
            "body": body,
        }
        found = call(self.socket, "seal", given, like=_SEALED)
        return _bytes(found["seal"]), _bytes(found["answer_key"])


@dataclass(frozen=True, slots=True)
class StoreSealer:
    """The key as the store has it, where no agent of this node answers."""

    view: LeaseView

    def seal(
        self, place: Place, name: str, nonce: bytes, asker: bytes, body: str
    ) -> tuple[bytes, bytes]:
        """Return what follows from the key in the view."""
        key, owner = self.view.fabric_keys.newest, find_node(self.view, place.node).attributes.owner
        if key is None or owner is None:
            msg = "the store has no fabric key; the first agent makes one"
            raise AgentUnreachableError(msg)
        exchange = Exchange(owner.node_id, nonce, asker, name)
        return exchange.question_seal(key, body.encode()), exchange.answer_key(key)


def find_node(view: LeaseView, name: str) -> Lease:
    """Return the lease of the node with that name or id. Raises UsageError."""
    for lease in view.leases.values():
        owner = lease.attributes.owner
        if owner is not None and name in {owner.node_name, owner.node_id}:
            return lease
    msg = f"no node {name!r} with an agent of ours; `overlayctl leases` lists them"
    raise UsageError(msg)


def ask(
    sealer: Sealer,
    place: Place,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    like: Shape = dict,
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any]:
    """Return what the agent at ``place`` answers to the call ``name``.

    Raises AgentUnreachableError, also for an answer that the node did not
    seal, and AgentRefusedError. ``timeout_s`` is for each of two requests.
    """
    body = json.dumps(dict(arguments or {}))
    try:
        nonce = _nonce(*_request(place, "GET", PATH, timeout_s))
        asker = secrets.token_bytes(NONCE_BYTES)
        seal, answer_key = sealer.seal(place, name, nonce, asker, body)
        headers = {
            NONCE_HEADER: nonce.hex(),
            ASKER_HEADER: asker.hex(),
            SEAL_HEADER: seal.hex(),
        }
        status, text, given = _request(
            place, "POST", f"{PATH}/{name}", timeout_s, body.encode(), headers
        )
    except (OSError, http.client.HTTPException) as exc:
        msg = (
            f"{place}: {exc}; is overlayd there told to listen on that address "
            "(--healthz-ip), and is the port open?"
        )
        raise AgentUnreachableError(msg) from exc
    document = _document(str(place), text)
    if status == 403:
        raise AgentRefusedError("forbidden", f"{place}: {document.get('error')}")
    if not is_answer(answer_key, given, status, text):
        msg = f"{place}: the answer is not sealed with the fabric's key; who answers there?"
        raise AgentUnreachableError(msg)
    result = document.get("result")
    if status != 200 or not isinstance(result, dict):
        raise AgentRefusedError("failed", f"{place}: {document.get('error')}")
    lacking = misfit(result, like)
    if lacking is not None:
        msg = f"{place}: the answer has no {lacking or 'content'}; do both have one version?"
        raise AgentUnreachableError(msg)
    return result


def parse_port(flag: str, text: str) -> int:
    """Return the port that a flag names. Raises UsageError."""
    if not text.isdecimal() or len(text) > 5 or not 0 < int(text) < 65536:
        msg = f"{flag} {text[:20]!r}: use 1 to 65535"
        raise UsageError(msg)
    return int(text)


def _request(
    place: Place,
    method: str,
    path: str,
    timeout_s: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes, bytes]:
    connection = http.client.HTTPConnection(str(place.address), place.port, timeout=timeout_s)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        text = answer.read(_LONGEST)
        return answer.status, text, _bytes(answer.getheader(SEAL_HEADER, ""))
    finally:
        connection.close()


def _nonce(status: int, text: bytes, _seal: bytes) -> bytes:
    document = _document("GET /ask", text)
    nonce = document.get("nonce")
    data = _bytes(nonce) if isinstance(nonce, str) else b""
    if status != 200 or len(data) != NONCE_BYTES:
        msg = "no agent of this version answers there"
        raise http.client.HTTPException(msg)
    return data


def _document(place: str, text: bytes) -> dict[str, Any]:
    try:
        document = parse_json(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        msg = f"{place}: what answers there is not overlayd of this version"
        raise AgentUnreachableError(msg)
    return document


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
