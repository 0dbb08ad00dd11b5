"""What is seen, in the words of ``ip``, and commands that mend."""

from overlay.model.address import Family
from overlay.model.kernel import MAIN_TABLE
from overlay.trace.facts import Hop, NeighborFact, PodEnd


def ip_command(family: Family) -> str:
    """Return ``ip`` with the flag that a family needs."""
    return "ip" if family is Family.IPV4 else "ip -6"


def in_pod(pod: PodEnd, command: str) -> str:
    """Return ``command``, run inside the pod's namespace."""
    return f"nsenter --net={pod.sandbox} {command}"


def route_text(hop: Hop) -> str:
    """Return what the kernel says to "which way", as ``ip route get`` would."""
    route = hop.route
    if route.kind == "refused":
        cover = hop.cover
        why = ""
        if cover is not None and not cover.is_way:
            why = f" ({cover.kind} {cover.prefix} metric {cover.metric} proto {cover.protocol})"
        return f"{hop.destination}: {route.error}{why}"
    if route.kind != "unicast":
        return f"{hop.destination} {route.kind}" + (f" {route.prefix}" if route.prefix else "")
    via = f" via {route.gateway}" if route.gateway is not None else ""
    table = f" table {route.table}" if route.table not in {0, MAIN_TABLE} else ""
    prefix = "default" if route.prefix is None or route.prefix.prefixlen == 0 else route.prefix
    return f"{prefix}{via} dev {route.device}{table}"


def neighbor_text(neighbor: NeighborFact) -> str:
    """Return a neighbor entry as ``ip neigh show`` would."""
    mac = f" lladdr {neighbor.mac}" if neighbor.mac else ""
    return f"{neighbor.address}{mac} {neighbor.state}"
