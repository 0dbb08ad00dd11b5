"""Objects of the Kubernetes API, read into values, refused where the API server would refuse.

Form and checks: ``networking.k8s.io/v1`` NetworkPolicy and ``pkg/apis/networking
/validation``. ``strict`` also refuses fields that an object does not have, for
what people write; the API server's own objects may have newer ones.
"""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, TypeAlias

from overlay.model.address import IPNetwork
from overlay.model.cluster_policy import ClusterNetworkPolicy
from overlay.model.errors import shown
from overlay.model.netpol import (
    BlockPeer,
    Namespace,
    NetworkPolicy,
    Peer,
    Pod,
    PodPeer,
    PortMatch,
    Protocol,
    Rule,
    Selector,
)
from overlay.policy.network.fields import Field, PolicyFormatError
from overlay.policy.network.parse_cluster import parse_cluster_policy
from overlay.policy.network.parse_pod import parse_namespace, parse_pod
from overlay.policy.network.selectors import parse_selector
from overlay.policy.network.subject import DEFAULT_NAMESPACE, object_name, root
from overlay.policy.network.syntax import network, port_name, port_number

POLICY_API: Final = "networking.k8s.io/v1"
Parsed: TypeAlias = NetworkPolicy | ClusterNetworkPolicy | Namespace | Pod
_DEEPEST_LIST: Final = 4  # a List may hold lists; nobody writes more


def parse_policy(
    document: Mapping[str, Any], *, strict: bool = True, namespace: str = DEFAULT_NAMESPACE
) -> NetworkPolicy:
    """Return a NetworkPolicy, in ``namespace`` where it names none. Raises PolicyFormatError."""
    top = root(document, "NetworkPolicy", POLICY_API, strict=strict)
    space, name = object_name(top, namespace)
    spec = top.get("spec")
    if spec is None:
        # All fields have defaults: every pod, no ingress.
        return NetworkPolicy(space, name, ingress=())
    spec.keys("podSelector", "ingress", "egress", "policyTypes")
    selector = spec.get("podSelector")
    ingress, egress = spec.get("ingress"), spec.get("egress")
    incoming = _rules(ingress, "from")
    outgoing = _rules(egress, "to")
    types = _policy_types(spec.get("policyTypes"), has_egress=bool(outgoing))
    return NetworkPolicy(
        space,
        name,
        parse_selector(selector) if selector is not None else Selector(),
        incoming if "Ingress" in types else None,
        outgoing if "Egress" in types else None,
    )


def parse_objects(
    document: Any, *, strict: bool = True, namespace: str = DEFAULT_NAMESPACE
) -> tuple[Parsed, ...]:
    """Return the objects of a document, a list of documents, or a List, in order.

    Empty documents (of YAML with several) hold none. Raises PolicyFormatError
    for the first object that is refused, and for kinds other than
    NetworkPolicy, ClusterNetworkPolicy, Namespace and Pod.
    """
    return tuple(_objects(document, namespace, _DEEPEST_LIST, strict=strict))


def _objects(document: Any, namespace: str, depth: int, *, strict: bool) -> list[Parsed]:
    if document is None:
        return []
    if isinstance(document, list | tuple):
        return [one for each in document for one in _objects(each, namespace, depth, strict=strict)]
    if not isinstance(document, Mapping):
        raise PolicyFormatError("object", "", document, f"{shown(document)} is no object")
    kind = document.get("kind")
    match kind:
        case "NetworkPolicy":
            return [parse_policy(document, strict=strict, namespace=namespace)]
        case "ClusterNetworkPolicy":
            return [parse_cluster_policy(document, strict=strict)]
        case "Namespace":
            return [parse_namespace(document, strict=strict)]
        case "Pod":
            return [parse_pod(document, strict=strict, namespace=namespace)]
    if isinstance(kind, str) and kind.endswith("List") and depth > 0:
        items = Field(document, "", kind if kind.isidentifier() else "List", strict).get("items")
        found: list[Parsed] = []
        for each in items.items() if items is not None else []:
            value = each.value
            if isinstance(value, Mapping) and "kind" not in value and kind != "List":
                value = {**value, "kind": kind.removesuffix("List")}
            found += _objects(value, namespace, depth - 1, strict=strict)
        return found
    raise PolicyFormatError(
        "object",
        "kind",
        kind,
        "must be NetworkPolicy, ClusterNetworkPolicy, Namespace, Pod or a List of them",
    )


def _policy_types(field: Field | None, *, has_egress: bool) -> frozenset[str]:
    listed = field.items() if field is not None else []
    if field is not None and len(listed) > 2:
        raise field.error("may not hold more than two; leave Ingress and Egress once each")
    if listed:
        return frozenset(each.one_of("Ingress", "Egress") for each in listed)
    return frozenset({"Ingress", "Egress"} if has_egress else {"Ingress"})


def _rules(field: Field | None, peers: str) -> tuple[Rule, ...]:
    return tuple(_rule(each, peers) for each in field.items()) if field is not None else ()


def _rule(field: Field, key: str) -> Rule:
    field.keys(key, "ports")
    peers, ports = field.get(key), field.get("ports")
    return Rule(
        tuple(_peer(each) for each in peers.items()) or None if peers is not None else None,
        tuple(_port(each) for each in ports.items()) or None if ports is not None else None,
    )


def _peer(field: Field) -> Peer:
    field.keys("podSelector", "namespaceSelector", "ipBlock")
    pods, namespaces = field.get("podSelector"), field.get("namespaceSelector")
    block = field.get("ipBlock")
    if block is not None:
        if pods is not None or namespaces is not None:
            raise field.error("ipBlock stands alone; give selectors a peer of their own")
        return _block(block)
    if pods is None and namespaces is None:
        raise field.error("must have podSelector, namespaceSelector or ipBlock")
    return PodPeer(
        parse_selector(pods) if pods is not None else Selector(),
        parse_selector(namespaces) if namespaces is not None else None,
    )


def _block(field: Field) -> BlockPeer:
    field.keys("cidr", "except")
    block = network(field.need("cidr"))
    holes = field.get("except")
    return BlockPeer(
        block, tuple(_hole(each, block) for each in holes.items()) if holes is not None else ()
    )


def _hole(field: Field, block: IPNetwork) -> IPNetwork:
    hole = network(field)
    if not _is_inside(hole, block):
        raise field.error(f"must lie within cidr {block} and be smaller")
    return hole


def _is_inside(hole: IPNetwork, block: IPNetwork) -> bool:
    if isinstance(hole, IPv4Network) and isinstance(block, IPv4Network):
        return hole != block and hole.subnet_of(block)
    if isinstance(hole, IPv6Network) and isinstance(block, IPv6Network):
        return hole != block and hole.subnet_of(block)
    return False


def _port(field: Field) -> PortMatch:
    field.keys("protocol", "port", "endPort")
    named = field.get("protocol")
    protocol = Protocol.TCP if named is None else Protocol[named.one_of("TCP", "UDP", "SCTP")]
    port, last = field.get("port"), field.get("endPort")
    if port is None:
        if last is not None:
            raise last.error("may not stand without port, the first of the range")
        return PortMatch(protocol)
    if isinstance(port.value, str):
        name = port_name(port)
        if last is not None:
            raise last.error("may not stand beside a port's name; give the number")
        return PortMatch(protocol, name)
    number = port_number(port)
    if last is None:
        return PortMatch(protocol, number)
    end = port_number(last)
    if end < number:
        raise last.error(f"must not be less than port {number}")
    return PortMatch(protocol, number, end)
