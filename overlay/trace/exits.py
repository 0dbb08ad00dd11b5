"""Where a packet leaves this node's routing without a tunnel: to a pod, or to a next hop."""

from collections.abc import Iterator, Sequence

from overlay.trace.entry import interface_steps
from overlay.trace.facts import FarHalf, Hop, Leg, Party, PodEnd
from overlay.trace.reasons import Reason
from overlay.trace.steps import Step, broken
from overlay.trace.words import in_pod, ip_command, neighbor_text


def delivery_steps(leg: Leg, pod: PodEnd) -> Iterator[Step]:
    """Yield the pod's interface, and the MAC address that it is sent to."""
    yield from interface_steps(pod)
    if pod.inside is None:
        return
    neighbor = leg.hop.neighbor if leg.hop is not None else None
    ip = ip_command(leg.packet.family)
    if neighbor is not None and neighbor.mac and neighbor.mac != pod.inside.mac:
        yield broken(
            "node", "neighbor", f"{neighbor_text(neighbor)} dev {_routed(pod)}",
            f"{pod.shown} has the MAC address {pod.inside.mac}",
            f"{ip} neigh del {neighbor.address} dev {_routed(pod)}",
            Reason.POD_NEIGHBOR,
        )  # fmt: skip
        return
    yield Step("pod", "delivery", f"{pod.shown} has {pod.address} on {pod.interface}")
    hop = pod.hop
    if not leg.packet.is_answer and hop is not None and not hop.route.is_way:
        yield broken(
            "pod", "route", f"{hop.destination}: {hop.route.error or hop.route.kind}",
            f"{pod.shown} has no way to answer",
            in_pod(pod, f"{ip} route replace default via "
                        f"{pod.gateway} dev {pod.interface} onlink "
                        "proto 80"),
            Reason.POD_ROUTE,
        )  # fmt: skip


def _routed(pod: PodEnd) -> str:
    return pod.routed.name if pod.routed is not None else pod.link


def leaving_steps(
    leg: Leg, hop: Hop, destination: Party, far: FarHalf, told: Sequence[Step]
) -> Iterator[Step]:
    """Yield the way out of this node by an interface that is no tunnel.

    ``told`` is what the node there said of itself.
    """
    yield from next_hop_steps("underlay", hop)
    via = f" by {hop.route.gateway}" if hop.route.gateway is not None else ""
    if told:
        yield from told
        return
    if destination.kind == "other":
        text = f"{leg.packet.destination} lies outside the fabric{via}; it is not looked further"
    else:
        text = f"{destination.node} hands it to {leg.packet.destination}, as its lease says"
        text += far.because
    yield Step("underlay", "delivery", text, "assumed")


def next_hop_steps(place: str, hop: Hop) -> Iterator[Step]:
    """Yield the interface that a route leads to, and the next hop on it."""
    route, link = hop.route, hop.link
    if link is None:
        yield broken(
            place,
            "interface",
            route.device,
            f"{route.device} is gone",
            f"ip link show {route.device}",
            Reason.UNDERLAY_DOWN,
        )
        return
    text = f"{link.name}{f' via {route.gateway}' if route.gateway is not None else ''}"
    if not link.is_up:
        mend = f"ip link set {link.name} up"
        yield broken(place, "interface", text, f"{link.name} is down", mend, Reason.UNDERLAY_DOWN)
        return
    if not link.has_carrier:
        fault = f"{link.name} has no carrier"
        mend = f"ip link show {link.name}  # look at its cable, or its other end"
        yield broken(place, "interface", text, fault, mend, Reason.UNDERLAY_DOWN)
        return
    yield Step(place, "interface", text, mtu=route.mtu or link.mtu)
    neighbor = hop.neighbor
    if neighbor is None:
        return
    if neighbor.state == "failed":
        yield broken(
            place, "neighbor", f"{neighbor_text(neighbor)} dev {link.name}",
            f"{neighbor.address} did not answer on {link.name}",
            f"ip neigh flush dev {link.name} to {neighbor.address}  # is that host up, and on this "
            "network?",
            Reason.UNDERLAY_SILENT,
        )  # fmt: skip
        return
    shown = neighbor_text(neighbor) if neighbor.mac else f"{neighbor.address}: not asked for yet"
    yield Step(place, "neighbor", f"{shown} dev {link.name}")
