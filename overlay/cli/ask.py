"""Asking another node's agent over HTTP, each side showing that it may read the store."""

import http.client
import json
import secrets
from collections.abc import Mapping
from typing import Any, Final

from overlay.cli.control import AgentRefusedError, AgentUnreachableError
from overlay.cli.shapes import Shape, misfit
from overlay.mesh.ask import ASKER_HEADER, NONCE_HEADER, PATH, SEAL_HEADER, Exchange
from overlay.mesh.seal import NONCE_BYTES
from overlay.model.address import IPAddress
from overlay.model.document import parse_json
from overlay.model.errors import UsageError
from overlay.model.lease import Lease, LeaseView

_TIMEOUT_S: Final = 5.0
_LONGEST: Final = 64 << 20  # bytes of one answer


def find_node(view: LeaseView, name: str) -> Lease:
    """Return the lease of the node with that name or id. Raises UsageError."""
    for lease in view.leases.values():
        owner = lease.attributes.owner
        if owner is not None and name in {owner.node_name, owner.node_id}:
            return lease
    msg = f"no node {name!r} with an agent of ours; `overlayctl leases` lists them"
    raise UsageError(msg)


def ask(
    view: LeaseView,
    node: str,
    port: int,
    call: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    like: Shape = dict,
) -> dict[str, Any]:
    """Return what the agent of ``node`` answers to ``call``, under the key in ``view``.

    Raises AgentUnreachableError, also for an answer that the node did not
    seal, and AgentRefusedError.
    """
    lease, key = find_node(view, node), view.fabric_keys.newest
    owner = lease.attributes.owner
    if key is None or owner is None:
        msg = "the store has no fabric key; the first agent makes one"
        raise AgentUnreachableError(msg)
    address = next(iter(lease.attributes.public.values()))
    place = f"{node} ({address} port {port})"
    body = json.dumps(dict(arguments or {})).encode()
    try:
        nonce = _nonce(*_request(address, port, "GET", PATH))
        exchange = Exchange(owner.node_id, nonce, secrets.token_bytes(NONCE_BYTES), call)
        headers = {
            NONCE_HEADER: exchange.nonce.hex(),
            ASKER_HEADER: exchange.asker.hex(),
            SEAL_HEADER: exchange.question_seal(key, body).hex(),
        }
        status, text, given = _request(address, port, "POST", f"{PATH}/{call}", body, headers)
    except (OSError, http.client.HTTPException) as exc:
        msg = (
            f"{place}: {exc}; is overlayd there told to listen on that address "
            "(--healthz-ip), and is the port open?"
        )
        raise AgentUnreachableError(msg) from exc
    document = _document(place, text)
    if status == 403:
        raise AgentRefusedError("forbidden", f"{place}: {document.get('error')}")
    if not exchange.is_answer(key, given, status, text):
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


def _request(
    address: IPAddress,
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes, bytes]:
    connection = http.client.HTTPConnection(str(address), port, timeout=_TIMEOUT_S)
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
