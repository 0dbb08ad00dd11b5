"""Objects of policies as they are kept: keys below the prefix, JSON as the Kubernetes API has it.

::

    policies/networkpolicies/NAMESPACE/NAME       a NetworkPolicy
    policies/clusternetworkpolicies/NAME          a ClusterNetworkPolicy
    policies/namespaces/NAME                      a Namespace
    policies/labels/NAMESPACE/NAME                {"labels": {...}}, given by an operator
    policies/pods/NODE/NAMESPACE/NAME             a Pod, written by its node
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from overlay.model.cluster_policy import ClusterNetworkPolicy
from overlay.model.document import parse_json
from overlay.model.netpol import Labels, Namespace, NetworkPolicy, Pod
from overlay.model.policy_view import AUDIT_ANNOTATION, PolicyView
from overlay.policy.network.fields import Field, PolicyFormatError
from overlay.policy.network.parse import parse_policy
from overlay.policy.network.parse_cluster import parse_cluster_policy
from overlay.policy.network.parse_pod import parse_namespace, parse_pod
from overlay.policy.network.salvage import salvaged
from overlay.policy.network.selectors import parse_labels
from overlay.policy.network.subject import DEFAULT_NAMESPACE

FOLDER: Final = "policies/"  # below the prefix
PODS: Final = "pods"
LABELS: Final = "labels"
NAMESPACES: Final = "namespaces"
POLICIES: Final = "networkpolicies"
CLUSTER_POLICIES: Final = "clusternetworkpolicies"
_NAMES: Final = re.compile(r"[-a-z0-9]+/[-.a-z0-9]+")
FOLDERS: Final = {
    "NetworkPolicy": POLICIES,
    "ClusterNetworkPolicy": CLUSTER_POLICIES,
    "Namespace": NAMESPACES,
}


@dataclass(frozen=True, slots=True)
class Audited:
    """A namespace, and whether its policies are only tried out."""

    namespace: Namespace
    is_audited: bool


@dataclass(frozen=True, slots=True)
class GivenLabels:
    """What an operator gives to a pod."""

    labels: Labels


Stored: TypeAlias = NetworkPolicy | ClusterNetworkPolicy | Audited | GivenLabels | Pod


def parse_stored(name: str, value: bytes) -> Stored:
    """Return what the key ``name``, below ``policies/``, holds. Raises PolicyFormatError.

    Unknown fields are let through: what writes may be newer than what reads.
    """
    folder, _, rest = name.partition("/")
    try:
        document = parse_json(value)
    except ValueError as exc:
        raise PolicyFormatError(_subject(name), "", None, f"not JSON: {exc}") from exc
    if not isinstance(document, Mapping):
        raise PolicyFormatError(_subject(name), "", None, "not an object")
    found: Stored
    match folder:
        case "networkpolicies":
            found = parse_policy(document, strict=False)
            own = f"{found.namespace}/{found.name}"
        case "clusternetworkpolicies":
            found = parse_cluster_policy(document, strict=False)
            own = found.name
        case "namespaces":
            found = _namespace(document, strict=False)
            own = found.namespace.name
        case "labels":
            found, own = GivenLabels(_labels(document, name)), rest
        case "pods":
            found = parse_pod(document, strict=False)
            own = f"{rest.partition('/')[0]}/{found.namespace}/{found.name}"
        case _:
            raise PolicyFormatError(_subject(name), "", None, "no such folder below policies/")
    if own != rest:
        raise PolicyFormatError(_subject(name), "metadata.name", own, "not what its key says")
    return found


def salvaged_object(name: str, value: bytes) -> NetworkPolicy | None:
    """Return what a key that ``parse_stored`` refuses isolates; None where it is no policy."""
    words = name.split("/")
    if len(words) != 3 or words[0] != POLICIES or not _NAMES.fullmatch("/".join(words[1:])):
        return None
    try:
        document = parse_json(value)
    except ValueError:
        document = None
    return salvaged(document, words[1], words[2])


def stored_objects(
    documents: Iterable[Mapping[str, Any] | None], *, namespace: str = DEFAULT_NAMESPACE
) -> list[tuple[str, str, bytes]]:
    """Return key, shown name and value of each object that people gave. Raises PolicyFormatError.

    Lists of objects are taken apart, empty documents passed over. The last of
    two that have one name counts.
    """
    found: dict[str, tuple[str, str, bytes]] = {}
    for document in _single(documents):
        kind = document.get("kind") if isinstance(document, Mapping) else None
        if not isinstance(kind, str) or kind not in FOLDERS:
            known = ", ".join(FOLDERS)
            problem = f"must be one of {known}; a pod's labels are set by `overlayctl pod label`"
            raise PolicyFormatError("object", "kind", kind, problem)
        name, value = _checked(document, kind, namespace)
        key = f"{FOLDERS[kind]}/{name}"
        found[key] = (key, f"{kind} {name}", json.dumps(value, separators=(",", ":")).encode())
    return list(found.values())


def laid_over(view: PolicyView, documents: Iterable[Mapping[str, Any] | None]) -> PolicyView:
    """Return what a source would hold if people gave it these too. Raises PolicyFormatError."""
    policies, cluster = dict(view.policies), dict(view.cluster_policies)
    namespaces, audited = dict(view.namespaces), set(view.audited)
    for key, _, value in stored_objects(documents):
        match parse_stored(key, value):
            case NetworkPolicy() as policy:
                policies[policy.key] = policy
            case ClusterNetworkPolicy() as policy:
                cluster[policy.name] = policy
            case Audited(namespace, is_audited):
                namespaces[namespace.name] = namespace.labels
                audited.discard(namespace.name)
                audited |= {namespace.name} if is_audited else set()
    return replace(
        view,
        policies=policies,
        cluster_policies=cluster,
        namespaces=namespaces,
        audited=frozenset(audited),
    )


def pod_document(pod: Pod) -> dict[str, Any]:
    """Return a pod in the API's form, as far as ``parse_pod`` reads it."""
    ports = [
        {"name": p.name, "containerPort": p.number, "protocol": p.protocol.name} for p in pod.ports
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": pod.namespace,
            "name": pod.name,
            "labels": dict(sorted(pod.labels.items())),
        },
        "spec": {"nodeName": pod.node, "containers": [{"name": "all", "ports": ports}]},
        "status": {"podIPs": [{"ip": str(a)} for a in sorted(pod.addresses, key=_order)]},
    }


def checked_labels(pod: str, labels: Mapping[str, str]) -> Labels:
    """Return labels that the API server would take. Raises PolicyFormatError."""
    return parse_labels(Field(dict(labels), "labels", f"pod {pod}"))


def _labels(document: Mapping[str, Any], name: str) -> Labels:
    return parse_labels(Field(document, "", _subject(name)).keys("labels").get("labels"))


def _checked(
    document: Mapping[str, Any], kind: str, namespace: str
) -> tuple[str, Mapping[str, Any]]:
    """Return the name below its folder, and the document with its namespace in it."""
    if kind == "Namespace":
        return _namespace(document, strict=True).namespace.name, document
    if kind == "ClusterNetworkPolicy":
        return parse_cluster_policy(document).name, document
    policy = parse_policy(document, namespace=namespace)
    metadata = {**document["metadata"], "namespace": policy.namespace}
    return f"{policy.namespace}/{policy.name}", {**document, "metadata": metadata}


def _namespace(document: Mapping[str, Any], *, strict: bool) -> Audited:
    namespace = parse_namespace(document, strict=strict)
    noted = document["metadata"].get("annotations") or {}
    word = noted.get(AUDIT_ANNOTATION) if isinstance(noted, Mapping) else None
    if word not in {None, "true", "false"}:
        raise PolicyFormatError(
            f"Namespace {namespace.name}",
            f"metadata.annotations[{AUDIT_ANNOTATION}]",
            word,
            'must be "true" or "false"',
        )
    return Audited(namespace, word == "true")


def _single(documents: Iterable[Any]) -> Iterable[Mapping[str, Any]]:
    for document in documents:
        if document is None:
            continue
        if isinstance(document, Mapping) and document.get("kind") == "List":
            yield from _single(document.get("items") or ())
        else:
            yield document


def _subject(name: str) -> str:
    return f"policies/{name if name.isprintable() and name.isascii() else ascii(name)}"


def _order(address: Any) -> tuple[int, int]:
    return address.version, int(address)
