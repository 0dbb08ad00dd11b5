"""How a packet comes to this node's routing: out of a pod, or out of a tunnel."""

from collections.abc import Iterator

from overlay.policy.verdict import Packet
from overlay.trace.facts import Leg, Party, PodEnd
from overlay.trace.rules import filter_steps
from overlay.trace.steps import Step, broken
from overlay.trace.words import in_pod, ip_command, route_text


def pod_steps(pod: PodEnd, packet: Packet) -> Iterator[Step]:
    """Yield the pod's interface, its route and its next hop."""
    yield from interface_steps(pod)
    if pod.inside is None or pod.hop is None or pod.routed is None:
        return
    route = pod.hop.route
    text = route_text(pod.hop)
    ip = ip_command(packet.family)
    gateway = pod.gateway
    if not route.is_way:
        onlink = f"dev {pod.interface} onlink"
        yield broken(
            "pod", "route", text, f"the pod has no route to {packet.destination}",
            in_pod(pod, f"{ip} route replace default via {gateway} {onlink} proto 80"),
        )  # fmt: skip
        return
    if route.kind == "local":
        yield Step("pod", "route", f"{packet.destination} is the pod's own")
        return
    if route.device != pod.interface:
        yield broken(
            "pod", "route", text, f"the pod sends it by {route.device}, which is not the fabric's",
            in_pod(pod, f"{ip} route replace {packet.destination} via {gateway} "
                        f"dev {pod.interface} onlink"),
        )  # fmt: skip
        return
    yield Step("pod", "route", text, mtu=route.mtu or pod.inside.mtu)
    neighbor = pod.hop.neighbor
    if neighbor is None:
        return
    if not neighbor.mac:
        yield Step(
            "pod",
            "neighbor",
            f"{neighbor.address}: {neighbor.state}; {pod.routed.name} answers for it",
        )
        return
    text = f"{neighbor.address} lladdr {neighbor.mac} {neighbor.state}"
    if neighbor.mac != pod.routed.mac and not is_bridged_to(pod, packet):
        yield broken(
            "pod", "neighbor", text,
            f"that is not the MAC address of the host's end {pod.routed.name}, {pod.routed.mac}",
            in_pod(pod, f"{ip} neigh replace {neighbor.address} lladdr {pod.routed.mac} "
                        f"dev {pod.interface} nud permanent"),
        )  # fmt: skip
        return
    yield Step("pod", "neighbor", text)


def is_bridged_to(pod: PodEnd, packet: Packet) -> bool:
    """Return whether the pod takes the destination for one on its own link, as on a bridge."""
    hop = pod.hop
    is_bridged = pod.routed is not None and pod.routed.name != pod.link
    return (
        is_bridged
        and hop is not None
        and hop.route.kind == "unicast"
        and hop.route.gateway is None
        and packet.destination == hop.destination
    )


def interface_steps(pod: PodEnd) -> Iterator[Step]:
    """Yield one step: the pod's interface and the host's end of it."""
    text = f"{pod.shown} {pod.interface} {pod.address} in {pod.sandbox}, behind {pod.link}"
    release = f"overlayctl ipam release {pod.container}"
    if pod.outside is None:
        fault, mend = f"the host's end {pod.link} is gone", f"{release}, and recreate the pod"
    elif pod.trouble:
        fault, mend = f"its namespace cannot be entered: {pod.trouble}", release
    elif not pod.outside.is_up:
        fault = f"the host's end {pod.link} is down, and the route to the pod went with it"
        prefix = f"{pod.address}/{pod.address.max_prefixlen}"
        mend = f"ip link set {pod.link} up; ip route replace {prefix} dev {pod.link} proto 80"
    elif pod.routed is None:
        fault, mend = f"the bridge behind {pod.link} is gone", "systemctl restart overlayd"
    elif not pod.routed.is_up:
        fault, mend = f"{pod.routed.name} is down", f"ip link set {pod.routed.name} up"
    elif pod.inside is None:
        fault, mend = f"the pod has no interface {pod.interface}", f"{release}, and recreate it"
    elif not pod.inside.is_up:
        fault = f"{pod.interface} is down in the pod"
        mend = in_pod(pod, f"ip link set {pod.interface} up")
    elif not pod.has_address:
        fault = f"the pod has lost its address {pod.address}"
        mend = in_pod(
            pod, f"ip addr add {pod.address}/{pod.address.max_prefixlen} dev {pod.interface}"
        )
    else:
        yield Step("pod", "interface", text, mtu=min(pod.inside.mtu, pod.outside.mtu))
        return
    yield broken("pod", "interface", text, fault, mend)


def arrival_steps(leg: Leg, source: Party) -> Iterator[Step]:
    """Yield how a tunnel packet gets in here."""
    arrival = leg.arrival
    node = source.node or "the other node"
    if arrival is None or arrival.link is None:
        yield Step(f"node {node}", "sending", f"{source.address} is sent to this node", "assumed")
        return
    outer = arrival.outer
    yield Step(
        f"node {node}",
        "sending",
        f"{node} sends it to {outer.destination} udp {outer.port} VNI {outer.vni}, as its lease "
        "says",
        "assumed",
    )
    yield from filter_steps("tunnel policy", arrival.verdicts, outer, source)
    link = arrival.link
    text = f"{link.name} VNI {link.vni} unpacks it"
    if not link.is_up:
        yield broken("node", "tunnel", text, f"{link.name} is down", f"ip link set {link.name} up")
        return
    yield Step("node", "tunnel", text, mtu=link.mtu)
