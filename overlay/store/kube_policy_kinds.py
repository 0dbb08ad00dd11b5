"""The kinds of object that network policies are made of, and what is kept of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from lightkube.generic_resource import create_global_resource
from lightkube.resources.core_v1 import Namespace as NamespaceResource
from lightkube.resources.core_v1 import Node as NodeResource
from lightkube.resources.core_v1 import Pod as PodResource
from lightkube.resources.networking_v1 import NetworkPolicy as NetworkPolicyResource

from overlay.model.cluster_policy import ClusterNetworkPolicy
from overlay.model.document import parse_json
from overlay.model.errors import LeaseFormatError
from overlay.model.netpol import NAME_LABEL, Labels, Namespace, NetworkPolicy, Pod
from overlay.model.policy_view import AUDIT_ANNOTATION
from overlay.policy.network.fields import PolicyFormatError
from overlay.policy.network.parse import parse_policy
from overlay.policy.network.parse_cluster import parse_cluster_policy
from overlay.policy.network.salvage import salvaged
from overlay.store.kube_client import Kind
from overlay.store.kube_pod import read_local_pod
from overlay.store.policy_objects import Audited

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeLabels:
    """A node, as far as cluster policies look at it beside its addresses."""

    name: str
    labels: Labels


class _Meta(msgspec.Struct):
    name: str
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _PlacedMeta(msgspec.Struct):
    name: str
    namespace: str


class _Named(msgspec.Struct):
    metadata: _PlacedMeta


class _Labelled(msgspec.Struct):
    metadata: _Meta


def _read(raw: bytes, parse: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        document = parse_json(raw)
        if not isinstance(document, Mapping):
            raise LeaseFormatError("not an object")
        return parse(document)
    except (PolicyFormatError, ValueError) as exc:
        raise LeaseFormatError(str(exc)) from exc


def read_policy(raw: bytes) -> NetworkPolicy:
    """Return a NetworkPolicy. Raises LeaseFormatError."""
    return _read(raw, lambda document: parse_policy(document, strict=False))


def read_cluster_policy(raw: bytes) -> ClusterNetworkPolicy:
    """Return a ClusterNetworkPolicy. Raises LeaseFormatError."""
    return _read(raw, lambda document: parse_cluster_policy(document, strict=False))


def read_namespace(raw: bytes) -> Audited:
    """Return a namespace, its name among its labels. Raises LeaseFormatError.

    Audited is only one that says "true": a word that nobody knows opens nothing.
    """
    try:
        meta = msgspec.json.decode(raw, type=_Labelled).metadata
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        msg = f"namespace cannot be read: {exc}"
        raise LeaseFormatError(msg) from exc
    labels = {**(meta.labels or {}), NAME_LABEL: meta.name}
    is_audited = (meta.annotations or {}).get(AUDIT_ANNOTATION) == "true"
    return Audited(Namespace(meta.name, labels), is_audited)


def read_node(raw: bytes) -> NodeLabels:
    """Return a node's name and labels. Raises LeaseFormatError."""
    try:
        meta = msgspec.json.decode(raw, type=_Labelled).metadata
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        msg = f"node cannot be read: {exc}"
        raise LeaseFormatError(msg) from exc
    return NodeLabels(meta.name, meta.labels or {})


def salvage_policy(raw: bytes) -> NetworkPolicy | None:
    """Return what a policy isolates that cannot be read whole: damage opens nothing."""
    try:
        document = parse_json(raw)
        meta = msgspec.json.decode(raw, type=_Named).metadata
    except (msgspec.MsgspecError, ValueError):
        return None
    return salvaged(document, meta.namespace, meta.name)


POLICIES: Final[Kind[NetworkPolicy]] = Kind(
    NetworkPolicyResource, "networkpolicies", read_policy, salvage_policy
)
NAMESPACES: Final[Kind[Audited]] = Kind(NamespaceResource, "namespaces", read_namespace)
NODES: Final[Kind[NodeLabels]] = Kind(NodeResource, "nodes", read_node)
CLUSTER_POLICIES: Final[Kind[ClusterNetworkPolicy]] = Kind(
    create_global_resource(
        "policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies"
    ),
    "clusternetworkpolicies",
    read_cluster_policy,
)
OWN_PODS: Final[Kind[Pod]] = Kind(PodResource, "pods", read_local_pod)


def peer_pods(read: Callable[[bytes], Pod]) -> Kind[Pod]:
    """Return pods as a kind of which ``read`` keeps what it likes."""
    return Kind(PodResource, "pods", read)
