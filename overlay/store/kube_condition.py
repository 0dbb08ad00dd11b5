"""The condition NetworkUnavailable of a node: set to False, so that pods are put there.

A cloud's controller sets it to True on new nodes, and the scheduler keeps pods
away (https://kubernetes.io/docs/reference/node/node-status/#condition).
"""

from datetime import UTC, datetime
from typing import Final

import msgspec
from lightkube.resources.core_v1 import Node, NodeStatus

from overlay.store.kube_client import STRATEGIC, Kind, KubeClient
from overlay.store.kube_errors import KubeUnavailableError

_TYPE: Final = "NetworkUnavailable"
_REASON: Final = "OverlayIsUp"


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""
    reason: str = ""


class _Status(msgspec.Struct):
    conditions: list[_Condition] | None = None


class _Object(msgspec.Struct):
    status: _Status | None = None


def _conditions(raw: bytes) -> list[_Condition]:
    status = msgspec.json.decode(raw, type=_Object).status
    return (status.conditions if status is not None else None) or []


_NODE: Final = Kind(Node, "nodes", _conditions)
_NODE_STATUS: Final = Kind(NodeStatus, "nodes/status", _conditions)


def set_network_available(client: KubeClient, node: str) -> bool:
    """Write the condition of ``node`` where it does not stand there yet; return whether it did.

    Repeating it is safe. Raises StoreError.
    """
    raw = client.call("get", _NODE, name=node)
    try:
        known = next((c for c in _NODE.decode(raw) if c.type == _TYPE), None)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        msg = f"Kubernetes API at {client.url}: status of node {node} cannot be read: {exc}"
        raise KubeUnavailableError(msg) from exc
    if known is not None and (known.status, known.reason) == ("False", _REASON):
        return False
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": _TYPE,
        "status": "False",
        "reason": _REASON,
        "message": "overlayd is running on this node",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    client.call(
        "patch",
        _NODE_STATUS,
        name=node,
        body={"status": {"conditions": [condition]}},
        content_type=STRATEGIC,
    )
    return True
