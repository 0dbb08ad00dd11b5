"""Sealing a question of this node's root to another node: the call ``seal`` of the socket.

The fabric's key stays in the agent. What is handed out is good for one
question to one node, and shows whether its answer is that node's.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from overlay.agent.status import Status
from overlay.mesh.ask import Exchange
from overlay.mesh.seal import NONCE_BYTES
from overlay.model.errors import OverlayError, UsageError
from overlay.model.lease import Lease, LeaseView


def seal_question(status: Status, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seal of ``body`` for ``call`` at the node of ``address``, and its answer's key.

    Raises OverlayError without a key, for a node that nobody can ask, and for
    what is no question.
    """
    view = status.get().view
    key = view.fabric_keys.newest if view is not None else None
    if view is None or key is None:
        msg = "the fabric's key is not known yet"
        raise OverlayError(msg)
    lease = lease_at(view, str(given.get("address")))
    owner = lease.attributes.owner
    if owner is None:
        msg = f"{lease.node} is flannel's, which answers no questions"
        raise OverlayError(msg)
    call, body = given.get("call"), given.get("body")
    if not isinstance(call, str) or not isinstance(body, str):
        msg = "call and body: texts are wanted"
        raise UsageError(msg)
    nonce, asker = _nonce(given, "nonce"), _nonce(given, "asker")
    exchange = Exchange(owner.node_id, nonce, asker, call)
    return {
        "seal": exchange.question_seal(key, body.encode()).hex(),
        "answer_key": exchange.answer_key(key).hex(),
    }


def lease_at(view: LeaseView, text: str) -> Lease:
    """Return the lease with that public address. Raises UsageError."""
    try:
        address = ip_address(text)
    except ValueError:
        msg = f"address {text[:64]!r}: an address is wanted"
        raise UsageError(msg) from None
    for lease in view.leases.values():
        if address in lease.attributes.public.values():
            return lease
    msg = f"no node with a lease is at {address}"
    raise UsageError(msg)


def _nonce(given: Mapping[str, Any], name: str) -> bytes:
    try:
        data = bytes.fromhex(str(given.get(name)))
    except ValueError:
        data = b""
    if len(data) != NONCE_BYTES:
        msg = f"{name}: {NONCE_BYTES} bytes as hexadecimal digits are wanted"
        raise UsageError(msg)
    return data
