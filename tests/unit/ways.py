"""A node's way to a pod of another node as observed facts, for tests that damage one of them."""

from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any, Final

from overlay.model.address import Family, IPAddress
from overlay.policy.listing import ListedChain, ListedRule
from overlay.policy.verdict import Packet, Verdict
from overlay.trace.facts import (
    Arrival,
    Holder,
    Hop,
    Leg,
    LinkFact,
    NeighborFact,
    Observed,
    Party,
    PodEnd,
    RouteFact,
    Tunnel,
)

POD: Final = ip_address("10.244.1.2")
FAR: Final = ip_address("10.244.2.2")
HERE: Final = ip_address("192.0.2.1")
THERE: Final = ip_address("192.0.2.2")
GATEWAY: Final = ip_address("10.244.2.0")
SUBNET: Final = IPv4Network("10.244.2.0/24")
MAC: Final = "02:00:00:00:00:02"

N1: Final = Holder("n1", (ip_network("10.244.1.0/24"),), {Family.IPV4: HERE}, backend="vxlan")
N2: Final = Holder(
    "n2",
    (SUBNET,),
    {Family.IPV4: THERE},
    {Family.IPV4: MAC},
    {Family.IPV4: 1},
    backend="vxlan",
)
OVERLAY: Final = LinkFact(
    "overlay.1", 1450, "02:00:00:00:00:01", vni=1, port=8472, local=HERE, lower="eth0", is_ours=True
)
ETH0: Final = LinkFact("eth0", 1500, "02:00:00:00:01:01")
VETH: Final = LinkFact("opod1", 1450, "02:00:00:00:02:01")
INSIDE: Final = LinkFact("eth0", 1450, "02:00:00:00:02:02")

FORWARD: Final = ListedChain(("inet", "overlay", "ov_forward"), "forward", -10)
FOREIGN: Final = ListedChain(("ip", "filter", "FORWARD"), "forward", 0, policy="drop")
MASQUERADE: Final = ListedChain(("inet", "overlay", "ov_postrouting"), "postrouting", is_nat=True)


def rule(*expressions: Any, comment: str = "", handle: int = 7) -> ListedRule:
    return ListedRule(handle, expressions, comment)


def pod_end() -> PodEnd:
    hop = Hop(
        FAR,
        RouteFact("unicast", ip_network("0.0.0.0/0"), 254, "eth0", ip_address("169.254.1.1")),
        INSIDE,
        NeighborFact(ip_address("169.254.1.1"), "permanent", VETH.mac),
    )
    return PodEnd(
        shown="pod default/web",
        container="c0ffee",
        interface="eth0",
        sandbox="/run/netns/web",
        address=POD,
        link="opod1",
        inside=INSIDE,
        outside=VETH,
        routed=VETH,
        gateway=ip_address("169.254.1.1"),
        hop=hop,
    )


def outer_hop() -> Hop:
    return Hop(
        THERE,
        RouteFact("unicast", ip_network("192.0.2.0/24"), 254, "eth0"),
        ETH0,
        NeighborFact(THERE, "reachable", "02:00:00:00:01:02"),
    )


def tunnel() -> Tunnel:
    outer = Packet(HERE, THERE, "udp", port=8472, oif="eth0", vni=1)
    return Tunnel(OVERLAY, (THERE,), outer, outer_hop(), (), ETH0)


def route(**changes: Any) -> RouteFact:
    whole = RouteFact("unicast", SUBNET, 254, "overlay.1", GATEWAY, protocol=79)
    return replace(whole, **changes)


def leg(**changes: Any) -> Leg:
    """Return the way from the pod to the far pod, with ``changes``."""
    hop = Hop(FAR, route(), OVERLAY, NeighborFact(GATEWAY, "permanent", MAC))
    whole = Leg(
        Packet(POD, FAR, iif="opod1", oif="overlay.1", source_device="opod1"),
        "pod",
        source=pod_end(),
        hop=hop,
        passing=(Verdict(FORWARD, "accept"),),
        postrouting=(Verdict(MASQUERADE, "accept"),),
        tunnel=tunnel(),
    )
    return replace(whole, **changes)


def with_route(found: RouteFact, **changes: Any) -> Leg:
    """Return the way with another route, and no tunnel behind it."""
    return leg(hop=Hop(FAR, found, **changes), tunnel=None)


def with_tunnel(**changes: Any) -> Leg:
    return leg(tunnel=replace(tunnel(), **changes))


def with_pod(**changes: Any) -> Leg:
    return leg(source=replace(pod_end(), **changes))


def answer(**changes: Any) -> Leg:
    """Return the way of the answer: in by the tunnel, to the pod."""
    outer = Packet(THERE, HERE, "udp", port=8472, iif="eth0", vni=1)
    hop = Hop(
        POD,
        RouteFact("unicast", ip_network("10.244.1.2/32"), 254, "opod1", protocol=80),
        VETH,
        NeighborFact(POD),
    )
    whole = Leg(
        Packet(FAR, POD, iif="overlay.1", oif="opod1", is_answer=True),
        "tunnel",
        arrival=Arrival(OVERLAY, outer),
        hop=hop,
        delivery=pod_end(),
    )
    return replace(whole, **changes)


def party(address: IPAddress, holder: Holder | None, kind: Any = "pod") -> Party:
    return Party(str(address), address, kind, is_here=holder is N1, holder=holder)


def observed(forward: Leg | None = None, back: Leg | None = None, **changes: Any) -> Observed:
    """Return a whole observation, from the pod to the far pod unless ``changes`` say else."""
    whole = Observed(
        source=party(POD, N1),
        destination=party(FAR, N2),
        own=N1,
        forward=forward or leg(),
        back=back,
        tunnels={Family.IPV4: OVERLAY},
    )
    return replace(whole, **changes)
