"""The node's routing decision, against what the leases say it should be."""

from collections.abc import Iterator
from typing import TypeAlias

from overlay.model.address import host_network
from overlay.model.kernel import NODE_TABLE, ROUTE_PROTOCOL, UNREACHABLE_METRIC
from overlay.trace.facts import Hop, Leg, Observed, Party
from overlay.trace.reasons import Reason
from overlay.trace.shadow import shadowed
from overlay.trace.steps import Step, broken
from overlay.trace.words import ip_command, route_text

Wrong: TypeAlias = tuple[Reason, str, str]  # the fault, and the command that mends it


def routing_steps(observed: Observed, leg: Leg, destination: Party) -> Iterator[Step]:
    """Yield whether the node forwards, and where its route leads."""
    hop = leg.hop
    if hop is None:
        return
    if leg.forwarding_off:
        is_one = f"/{leg.packet.iif}/" in leg.forwarding_off
        what = f"what comes in by {leg.packet.iif}" if is_one else "packets"
        yield broken(
            "node", "forwarding", f"{leg.forwarding_off} = 0", f"this node does not forward {what}",
            f"sysctl -w {leg.forwarding_off}=1",
            Reason.FORWARDING,
        )  # fmt: skip
        return
    text = route_text(hop)
    wrong = _tunnel_gone(observed, leg, destination) or _wrong(observed, leg, hop, destination)
    if wrong is not None:
        reason, fault, mend = wrong
        yield broken("node", "route", text, fault, mend, reason)
        return
    link = hop.link
    mtu = hop.route.mtu or (link.mtu if link is not None and link.name != "lo" else None)
    yield Step("node", "route", text, mtu=mtu)


def _tunnel_gone(observed: Observed, leg: Leg, destination: Party) -> Wrong | None:
    """Return what is wrong with the VXLAN device: its routes go with it, so it is looked at first.

    What this node sends to another node goes by the underlay, and needs none.
    """
    holder, hop, family = destination.holder, leg.hop, leg.packet.family
    if destination.is_here or holder is None or holder.backend != "vxlan" or holder.problem:
        return None
    if hop is None or (destination.kind == "node" and leg.entry != "pod"):
        return None
    if hop.route.is_way and hop.route.gateway in holder.public.values():
        return None  # reached directly
    link = observed.tunnels.get(family)
    if link is None:
        fault = "this node has no VXLAN device for it"
        return Reason.DEVICE_GONE, fault, "systemctl restart overlayd"
    if not link.is_up:
        return (
            Reason.DEVICE_DOWN,
            f"{link.name} is down, and its routes went with it",
            f"ip link set {link.name} up; systemctl restart overlayd",
        )
    wanted = holder.vnis.get(family, link.vni)
    if wanted != link.vni:
        return (
            Reason.OTHER_VNI,
            f"{holder.node} listens on VNI {wanted}, as its lease says, {link.name} on {link.vni}",
            f"ip link del {link.name}; systemctl restart overlayd",
        )
    return None


def _wrong(observed: Observed, leg: Leg, hop: Hop, destination: Party) -> Wrong | None:
    """Return what is wrong with the route and the command that mends it; None where it is right."""
    if hop.route.kind == "refused" and "rp_filter" in hop.route.error:
        return (
            Reason.RP_FILTER,
            f"{hop.route.error}: the way back to {leg.packet.source} is not {leg.packet.iif}",
            f"sysctl -w net.ipv4.conf.{leg.packet.iif.replace('.', '/')}.rp_filter=0",
        )
    if destination.is_here:
        return _to_here(leg, hop, destination)
    if destination.holder is not None and destination.holder.problem:
        mend = f"overlayctl leases show {destination.node}"
        return Reason.UNSAID, destination.holder.problem, mend
    if destination.kind == "pod":
        return _to_pod(observed, leg, hop, destination)
    if destination.kind == "node":
        return _to_node(observed, leg, hop, destination)
    return _to_other(observed, leg, hop)


def _to_here(leg: Leg, hop: Hop, destination: Party) -> Wrong | None:
    address = leg.packet.destination
    if destination.kind == "node":
        if hop.route.kind == "local":
            return None
        fault = f"{address} is no address of this node any more"
        return Reason.NOT_OURS, fault, "systemctl restart overlayd"
    pod = leg.delivery
    if pod is None:
        if hop.route.kind == "local":  # the VXLAN device's own address
            return None
        return Reason.NO_POD, f"no pod of this node has {address}", "overlayctl ipam list"
    device = pod.routed.name if pod.routed is not None else pod.link
    if hop.route.device == device:
        return None
    shadow = shadowed(hop, host_network(address))
    if shadow is not None:
        return shadow
    ip, prefix = ip_command(leg.packet.family), f"{address}/{address.max_prefixlen}"
    return (
        Reason.POD_UNROUTED,
        f"the route to {pod.shown} is gone",
        f"{ip} route replace {prefix} dev {device} proto 80",
    )


def _to_pod(observed: Observed, leg: Leg, hop: Hop, destination: Party) -> Wrong | None:
    holder = destination.holder
    if holder is None:
        return None
    route, network = hop.route, holder.network(leg.packet.family)
    if network is None:
        return None
    public = holder.public.get(leg.packet.family)
    is_direct = public is not None and route.gateway == public
    is_tunnel = hop.link is not None and hop.link.vni != 0
    if route.kind == "unicast" and (is_direct or is_tunnel) and route.prefix == network:
        if is_tunnel and route.gateway != network.network_address:
            return (
                Reason.ROUTE,
                f"it leads to {route.gateway}, not to {holder.node}",
                _route_command(observed, leg, destination),
            )
        return None
    shadow = shadowed(hop, network)
    if shadow is not None:
        return shadow
    what = "is gone" if route.prefix != network else f"leads to {route.device}"
    return (
        Reason.ROUTE,
        f"the route to {network} of {holder.node} {what}",
        _route_command(observed, leg, destination),
    )


def _to_node(observed: Observed, leg: Leg, hop: Hop, destination: Party) -> Wrong | None:
    """Judge a pod's way to a node: through the tunnel, so that its address is no stranger."""
    route = hop.route
    if hop.rule is not None and not route.is_way:
        return shadowed(hop, host_network(leg.packet.destination))
    if not route.is_way:
        fault = f"no way to node {destination.node}"
        return Reason.UNDERLAY_ROUTE, fault, "ip route show table all"
    peer = leg.peer
    if leg.entry != "pod" or peer is None or peer.link is None or not peer.link.vni:
        return None  # peers are reached directly, and nodes too
    if hop.link is not None and hop.link.vni != 0:
        return None
    if hop.rule is not None:
        return shadowed(hop, host_network(leg.packet.destination))
    ip = ip_command(leg.packet.family)
    stray = f"it would leave by {route.device} with a pod's address, which networks drop"
    if not leg.has_rule:
        own = observed.own.network(leg.packet.family) if observed.own is not None else None
        network = own or host_network(leg.packet.source)
        mend = f"{ip} rule add from {network} lookup {NODE_TABLE} priority {NODE_TABLE}"
        return (
            Reason.ROUTE,
            f"the rule for what pods send to nodes is gone: {stray}",
            f"{mend} protocol {ROUTE_PROTOCOL}",
        )
    gateway = peer.route.gateway
    mend = f"{ip} route replace {leg.packet.destination} via {gateway} dev {peer.link.name} onlink"
    return (
        Reason.ROUTE,
        f"table {NODE_TABLE} has no route to {destination.node}: {stray}",
        f"{mend} table {NODE_TABLE} proto {ROUTE_PROTOCOL}",
    )


def _to_other(observed: Observed, leg: Leg, hop: Hop) -> Wrong | None:
    route, cover = hop.route, hop.cover
    if route.is_way:
        is_stale = hop.link is not None and hop.link.vni != 0 and observed.knows_leases
        if is_stale and route.protocol == ROUTE_PROTOCOL:
            ip = ip_command(leg.packet.family)
            return (
                Reason.ROUTE,
                f"stale: no node holds a lease for {route.prefix} any more",
                f"{ip} route del {route.prefix} proto {ROUTE_PROTOCOL}",
            )
        return None
    if hop.rule is not None:
        return shadowed(hop, host_network(leg.packet.destination))
    if cover is not None and cover.metric == UNREACHABLE_METRIC:
        return (
            Reason.ROUTE,
            f"{leg.packet.destination} is of the pod network, and no node holds a lease for it",
            f"overlayctl leases show {leg.packet.destination}",
        )
    return (
        Reason.ROUTE,
        f"this node has no way to {leg.packet.destination}: {route.error or route.kind}",
        f"{ip_command(leg.packet.family)} route add default via ROUTER  # this network's",
    )


def _route_command(observed: Observed, leg: Leg, destination: Party) -> str:
    holder, ip = destination.holder, ip_command(leg.packet.family)
    network = holder.network(leg.packet.family) if holder is not None else None
    if holder is None or network is None:
        return "systemctl restart overlayd"
    tunnel = observed.tunnels.get(leg.packet.family)
    mark = f"proto {ROUTE_PROTOCOL}"
    if tunnel is None or holder.backend == "host-gw":
        return f"{ip} route replace {network} via {holder.public[leg.packet.family]} {mark}"
    via = f"via {network.network_address} dev {tunnel.name} onlink"
    return f"{ip} route replace {network} {via} {mark}"
