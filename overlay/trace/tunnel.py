"""The way through a VXLAN device: neighbor, forwarding entry, the outside, and what fits in."""

from collections.abc import Iterator, Sequence

from overlay.model.address import family_of
from overlay.trace.entry import other_mac
from overlay.trace.exits import next_hop_steps
from overlay.trace.facts import FarHalf, Holder, Leg, Party, Tunnel
from overlay.trace.reasons import Reason
from overlay.trace.rules import filter_steps
from overlay.trace.steps import Step, broken
from overlay.trace.words import ip_command, neighbor_text, route_text


def tunnel_steps(
    leg: Leg,
    tunnel: Tunnel,
    destination: Party,
    own: Holder | None,
    far: FarHalf,
    told: Sequence[Step],
) -> Iterator[Step]:
    """Yield the steps from the VXLAN device of the node ``own`` to the far node.

    ``told`` is what the far node said of its half; without that it is assumed.
    """
    holder = destination.holder
    yield _device(tunnel, holder, own)
    yield from _neighbor(leg, tunnel, holder)
    yield from _forwarding(leg, tunnel, holder)
    outer, hop = tunnel.outer, tunnel.hop
    if outer is None or hop is None:
        return
    text = f"{outer.source} -> {outer.destination} udp {outer.port} VNI {outer.vni}"
    yield Step("underlay", "outside", text)
    way = route_text(hop)
    lower = tunnel.lower
    if lower is not None and not lower.is_up:
        fault = f"the underlay {lower.name} is down"
        mend = f"ip link set {lower.name} up"
        yield broken("underlay", "route", way, fault, mend, Reason.UNDERLAY_DOWN)
        return
    if not hop.route.is_way:
        yield broken(
            "underlay", "route", way, f"this node has no way to {outer.destination}",
            f"{ip_command(outer.family)} route show table all  # add one to {outer.destination}",
            Reason.UNDERLAY_ROUTE,
        )  # fmt: skip
        return
    if hop.route.device == tunnel.link.name:
        yield broken(
            "underlay", "route", way, "the tunnel's own packets would go into the tunnel",
            f"{ip_command(outer.family)} route del {hop.route.prefix} dev {tunnel.link.name}",
            Reason.UNDERLAY_ROUTE,
        )  # fmt: skip
        return
    yield from next_hop_steps("underlay", hop)
    yield from filter_steps("underlay policy", tunnel.output, outer, destination)
    yield _room(tunnel)
    if told:
        yield from told
        return
    node = holder.node if holder is not None else str(outer.destination)
    yield Step(
        f"node {node}",
        "delivery",
        f"{node} unpacks VNI {outer.vni} and hands it to {leg.packet.destination}, as its lease "
        f"says{far.because}",
        "assumed",
    )


def _device(tunnel: Tunnel, holder: Holder | None, own: Holder | None) -> Step:
    link = tunnel.link
    text = f"{link.name} VNI {link.vni} port {link.port} local {link.local}"
    if not link.is_up:
        mend = f"ip link set {link.name} up"
        return broken("node", "tunnel", text, f"{link.name} is down", mend, Reason.DEVICE_DOWN)
    if link.local is not None and holder is not None:
        wanted = holder.vnis.get(family_of(link.local))
        if wanted is not None and wanted != link.vni:
            return broken(
                "node", "tunnel", text,
                f"{holder.node} listens on VNI {wanted}, as its lease says",
                f"ip link del {link.name}; systemctl restart overlayd; "
                f"overlayctl leases show {holder.node}",
                Reason.OTHER_VNI,
            )  # fmt: skip
    wrong = other_mac(link, own)
    if wrong is not None:
        return broken("node", "tunnel", text, *wrong, Reason.OWN_MAC)
    return Step("node", "tunnel", text, mtu=link.mtu)


def _neighbor(leg: Leg, tunnel: Tunnel, holder: Holder | None) -> Iterator[Step]:
    neighbor = leg.hop.neighbor if leg.hop is not None else None
    if neighbor is None:
        return
    text = f"{neighbor_text(neighbor)} dev {tunnel.link.name}"
    expected = _expected_mac(tunnel, holder)
    ip = ip_command(leg.packet.family)
    entry = (
        f"{ip} neigh replace {neighbor.address} lladdr {expected or 'MAC'} dev {tunnel.link.name} "
        "nud permanent"
    )
    node = holder.node if holder is not None else "the other node"
    if not neighbor.mac:
        fault = f"there is no neighbor entry for {neighbor.address}, and nobody answers for it"
        yield broken("node", "neighbor", text, fault, entry, Reason.NEIGHBOR)
    elif expected and neighbor.mac != expected:
        fault = f"{node} has the MAC address {expected}, as its lease says"
        yield broken("node", "neighbor", text, fault, entry, Reason.NEIGHBOR)
    else:
        yield Step("node", "neighbor", text)


def _forwarding(leg: Leg, tunnel: Tunnel, holder: Holder | None) -> Iterator[Step]:
    neighbor = leg.hop.neighbor if leg.hop is not None else None
    mac = neighbor.mac if neighbor is not None else ""
    public = None
    if holder is not None and tunnel.link.local is not None:
        public = holder.public.get(family_of(tunnel.link.local))
    listed = ", ".join(map(str, tunnel.destinations)) or "nowhere"
    text = f"{mac} dev {tunnel.link.name} dst {listed}"
    entry = (
        f"bridge fdb replace {mac} dev {tunnel.link.name} dst {public or 'ADDRESS'} self permanent"
    )
    node = holder.node if holder is not None else "the other node"
    if not tunnel.destinations:
        fault = f"there is no forwarding entry for {mac}"
        yield broken("node", "fdb", text, fault, entry, Reason.FDB)
    elif public is not None and tunnel.destinations != (public,):
        fault = f"{node} is at {public}, as its lease says"
        yield broken("node", "fdb", text, fault, entry, Reason.FDB)
    else:
        yield Step("node", "fdb", text)


def _expected_mac(tunnel: Tunnel, holder: Holder | None) -> str:
    if holder is None or tunnel.link.local is None:
        return ""
    return holder.macs.get(family_of(tunnel.link.local), "")


def _room(tunnel: Tunnel) -> Step:
    """Return whether what the device takes fits the underlay, with the encapsulation around it."""
    hop, link = tunnel.hop, tunnel.link
    assert hop is not None and hop.link is not None and tunnel.outer is not None  # noqa: S101, PT018
    overhead = tunnel.outer.family.encapsulation_overhead
    path = min(mtu for mtu in (hop.route.mtu, hop.link.mtu) if mtu)
    room = path - overhead
    text = f"{hop.link.name} {path} - {overhead} of VXLAN = {room}; {link.name} takes {link.mtu}"
    if link.mtu > room:
        return broken(
            "underlay", "mtu", text,
            f"packets of {_span(room + 1, link.mtu)} bytes do not fit the underlay",
            f"ip link set {link.name} mtu {room}",
            Reason.MTU,
        )  # fmt: skip
    return Step("underlay", "mtu", text, mtu=room)


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
