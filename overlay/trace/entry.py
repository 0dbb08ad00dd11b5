"""How a packet comes to this node's routing: out of a pod, or out of a tunnel."""

from collections.abc import Iterator, Sequence

from overlay.model.address import family_of
from overlay.policy.verdict import Packet
from overlay.trace.facts import FarHalf, Holder, Leg, LinkFact, Party, PodEnd
from overlay.trace.reasons import Reason
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
            Reason.POD_ROUTE,
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
            Reason.POD_ROUTE,
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
            Reason.POD_NEIGHBOR,
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
    found = _interface_fault(pod)
    if found is None and pod.unseen and pod.outside is not None:
        text += f"; not looked at inside: {pod.unseen}"
        yield Step("pod", "interface", text, mtu=pod.outside.mtu)
    elif found is None and pod.inside is not None and pod.outside is not None:
        yield Step("pod", "interface", text, mtu=min(pod.inside.mtu, pod.outside.mtu))
    elif found is not None:
        reason, fault, mend = found
        yield broken("pod", "interface", text, fault, mend, reason)


def _interface_fault(pod: PodEnd) -> tuple[Reason, str, str] | None:
    """Return what is wrong with a pod's interface and the command that mends it."""
    release = f"overlayctl ipam release {pod.container}"
    prefix = f"{pod.address}/{pod.address.max_prefixlen}"
    if pod.outside is None:
        fault = f"the host's end {pod.link} is gone"
        return Reason.POD_LINK_GONE, fault, f"{release}  # and recreate the pod"
    if pod.trouble:
        return Reason.POD_SANDBOX, f"its namespace cannot be entered: {pod.trouble}", release
    if not pod.outside.is_up:
        fault = f"the host's end {pod.link} is down, and the route to the pod went with it"
        mend = f"ip link set {pod.link} up; ip route replace {prefix} dev {pod.link} proto 80"
        return Reason.POD_LINK_DOWN, fault, mend
    if pod.routed is None:
        mend = "systemctl restart overlayd"
        return Reason.POD_BRIDGE, f"the bridge behind {pod.link} is gone", mend
    if not pod.routed.is_up:
        mend = f"ip link set {pod.routed.name} up"
        return Reason.POD_BRIDGE, f"{pod.routed.name} is down", mend
    if pod.unseen:
        return None
    if pod.inside is None:
        fault = f"the pod has no interface {pod.interface}"
        return Reason.POD_INTERFACE_GONE, fault, f"{release}  # and recreate the pod"
    if not pod.inside.is_up:
        mend = in_pod(pod, f"ip link set {pod.interface} up")
        return Reason.POD_INTERFACE_DOWN, f"{pod.interface} is down in the pod", mend
    if not pod.has_address:
        mend = in_pod(pod, f"ip addr add {prefix} dev {pod.interface}")
        return Reason.POD_ADDRESS, f"the pod has lost its address {pod.address}", mend
    return None


def other_mac(link: LinkFact, own: Holder | None) -> tuple[str, str] | None:
    """Return the fault and its mend where a VXLAN device has not the MAC address of the lease.

    The kernel then takes what others send for packets to somebody else. With
    each change of the address all neighbor entries go.
    """
    wanted = own.macs.get(family_of(link.local), "") if own is not None and link.local else ""
    if not wanted or link.mac == wanted:
        return None
    fault = f"{link.name} has MAC address {link.mac}, its lease says {wanted}"
    mend = f"ip link set {link.name} address {wanted}; systemctl restart overlayd"
    return f"{fault}: it drops what others send", mend


def arrival_steps(
    leg: Leg, source: Party, own: Holder | None, far: FarHalf, told: Sequence[Step]
) -> Iterator[Step]:
    """Yield how a tunnel packet gets in here; ``told`` is what the sending node said of itself."""
    arrival = leg.arrival
    node = source.node or "the other node"
    yield from told
    if arrival is None or arrival.link is None:
        if not told:
            text = f"{source.address} is sent to this node{far.because}"
            yield Step(f"node {node}", "sending", text, "assumed")
        return
    outer = arrival.outer
    if not told:
        yield Step(
            f"node {node}",
            "sending",
            f"{node} sends it to {outer.destination} udp {outer.port} VNI {outer.vni}, as its "
            f"lease says{far.because}",
            "assumed",
        )
    yield from filter_steps("tunnel policy", arrival.verdicts, outer, source)
    link = arrival.link
    text = f"{link.name} VNI {link.vni} unpacks it"
    if not link.is_up:
        mend = f"ip link set {link.name} up"
        yield broken("node", "tunnel", text, f"{link.name} is down", mend, Reason.DEVICE_DOWN)
        return
    wrong = other_mac(link, own)
    if wrong is not None:
        yield broken("node", "tunnel", text, *wrong, Reason.OWN_MAC)
        return
    yield Step("node", "tunnel", text, mtu=link.mtu)
