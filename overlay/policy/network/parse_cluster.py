"""ClusterNetworkPolicy of ``policy.networking.k8s.io/v1alpha2``, read and checked.

Form and rules: kubernetes-sigs/network-policy-api,
``apis/v1alpha2/clusternetworkpolicy_types.go``.
"""

from collections.abc import Mapping
from typing import Any, Final

from overlay.model.cluster_policy import (
    Action,
    ClusterNetworkPolicy,
    ClusterPeer,
    ClusterPort,
    ClusterRule,
    NamedPortMatch,
    NodePeer,
    Tier,
)
from overlay.model.netpol import BlockPeer, PodPeer, PortMatch, Protocol, Selector
from overlay.policy.network.fields import Field
from overlay.policy.network.selectors import parse_selector
from overlay.policy.network.subject import metadata, root
from overlay.policy.network.syntax import dns_subdomain, network, port_name, port_number

CLUSTER_API: Final = "policy.networking.k8s.io/v1alpha2"
_HIGHEST_PRIORITY: Final = 1000
_MOST: Final = 25  # of rules, of peers and ports in one, of networks in a peer
_LONGEST_NAME: Final = 100
_LAST_PORT: Final = 65535
_PROTOCOLS: Final = ("tcp", "udp", "sctp", "destinationNamedPort")


def parse_cluster_policy(
    document: Mapping[str, Any], *, strict: bool = True
) -> ClusterNetworkPolicy:
    """Return a ClusterNetworkPolicy. Raises PolicyFormatError.

    Peers by domain name are refused where strict; else their rule fails
    closed, as the API asks of who does not understand a peer, and so does one
    with a protocol that is not understood.
    """
    top = root(document, "ClusterNetworkPolicy", CLUSTER_API, strict=strict)
    name = dns_subdomain(metadata(top).need("name"))
    spec = top.need("spec").keys("tier", "priority", "subject", "ingress", "egress")
    return ClusterNetworkPolicy(
        name,
        Tier(spec.need("tier").one_of(*(tier.value for tier in Tier))),
        spec.need("priority").integer(0, _HIGHEST_PRIORITY),
        _subject(spec.need("subject")),
        _rules(spec.get("ingress"), "from"),
        _rules(spec.get("egress"), "to"),
    )


def _subject(field: Field) -> PodPeer:
    return _pods(_only(field, "namespaces", "pods"))


def _only(field: Field, *keys: str) -> Field:
    """Return the one key that is set."""
    field.keys(*keys)
    found = [each for key in keys if (each := field.get(key)) is not None]
    if len(found) != 1:
        raise field.error(f"must have exactly one of {', '.join(keys)}")
    return found[0]


def _pods(field: Field) -> PodPeer:
    """Return what ``namespaces`` or ``pods`` selects."""
    if field.path.endswith(".namespaces"):
        return PodPeer(Selector(), parse_selector(field))
    field.keys("namespaceSelector", "podSelector")
    namespaces = field.get("namespaceSelector")
    return PodPeer(
        parse_selector(field.need("podSelector")),
        parse_selector(namespaces) if namespaces is not None else Selector(),
    )


def _rules(field: Field | None, peers: str) -> tuple[ClusterRule, ...]:
    return tuple(_rule(each, peers) for each in _few(field)) if field is not None else ()


def _few(field: Field) -> list[Field]:
    items = field.items()
    if len(items) > _MOST:
        raise field.error(f"may hold {_MOST} at most; make a policy more")
    return items


def _some(field: Field) -> list[Field]:
    items = _few(field)
    if not items:
        raise field.error("must hold at least one")
    return items


def _rule(field: Field, key: str) -> ClusterRule:
    field.keys("name", "action", key, "protocols")
    action = Action(field.need("action").one_of(*(action.value for action in Action)))
    spelled = field.get("name")
    name = spelled.text() if spelled is not None else ""
    if spelled is not None and len(name) > _LONGEST_NAME:
        raise spelled.error(f"must have at most {_LONGEST_NAME} characters")
    understood: list[ClusterPeer] = []
    fails_closed = False
    entries = _some(field.need(key))
    for each in entries:
        found = _peer(each, is_egress=key == "to")
        fails_closed = fails_closed or not found
        understood += found
    ports, is_understood = _ports(field.get("protocols"))
    fails_closed = fails_closed or not is_understood
    is_named = any(isinstance(port, NamedPortMatch) for port in ports or ())
    if is_named and any(not isinstance(peer, PodPeer) for peer in understood):
        raise field.error("destinationNamedPort goes with pods and namespaces only")
    if fails_closed and action is not Action.ACCEPT:
        return ClusterRule(Action.DENY, None, None, name)
    if not is_understood:
        understood = []
    return ClusterRule(action, tuple(understood), ports, name)


def _peer(field: Field, *, is_egress: bool) -> tuple[ClusterPeer, ...]:
    """Return what one peer stands for, nothing where it is not understood."""
    known = ("namespaces", "pods", "nodes", "networks") if is_egress else ("namespaces", "pods")
    if isinstance(field.value, Mapping) and not field.strict:
        present = [key for key in field.value if field.value[key] is not None]
        if len(present) == 0 or any(key not in known for key in present):
            return ()
    elif is_egress and isinstance(field.value, Mapping) and "domainNames" in field.value:
        raise field.error("peers by domainNames are not supported; use networks")
    chosen = _only(field, *known)
    if chosen.path.endswith(".nodes"):
        return (NodePeer(parse_selector(chosen)),)
    if chosen.path.endswith(".networks"):
        return tuple(BlockPeer(network(each)) for each in _some(chosen))
    return (_pods(chosen),)


def _ports(field: Field | None) -> tuple[tuple[ClusterPort, ...] | None, bool]:
    """Return the ports, and whether all of them are understood."""
    if field is None:
        return None, True
    entries = _some(field)
    ports = tuple(_port(each) for each in entries if _is_understood(each))
    return ports, len(ports) == len(entries)


def _is_understood(field: Field) -> bool:
    if field.strict or not isinstance(field.value, Mapping):
        return True
    present = [key for key, value in field.value.items() if value is not None]
    if len(present) != 1 or present[0] not in _PROTOCOLS:
        return False
    inner = field.value[present[0]]
    return not isinstance(inner, Mapping) or set(inner) == {"destinationPort"}


def _port(field: Field) -> ClusterPort:
    chosen = _only(field, *_PROTOCOLS)
    key = chosen.path.rpartition(".")[2]
    if key == "destinationNamedPort":
        return NamedPortMatch(port_name(chosen))
    protocol = Protocol[key.upper()]
    destination = chosen.keys("destinationPort").get("destinationPort")
    if destination is None:
        problem = "must name its destinationPort; 1 to 65535 is every one"
        raise chosen.error(problem)
    port = _only(destination, "number", "range")
    if port.path.endswith(".number"):
        return PortMatch(protocol, port_number(port))
    port.keys("start", "end")
    first, last = port_number(port.need("start")), port.need("end")
    end = last.integer(1, _LAST_PORT)
    if end <= first:
        raise last.error(f"must be greater than start {first}")
    return PortMatch(protocol, first, end)
