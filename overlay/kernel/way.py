"""One packet's way through this node, read step by step: each answer leads to the next question.

Only reads. What it means is for ``overlay.trace``.
"""

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from overlay.kernel import messages, parse, sysctl
from overlay.kernel.asked import Ground
from overlay.kernel.base import KernelError
from overlay.kernel.container import hides_processes
from overlay.kernel.netns import NamespaceEntryError, open_rtnl
from overlay.kernel.pod_gateway import GATEWAY
from overlay.model.address import Family, IPAddress, family_of
from overlay.model.attachment import BRIDGE, Attachment
from overlay.model.node import POD_BRIDGE
from overlay.policy.listing import Listing
from overlay.policy.verdict import Packet, Verdict, verdicts
from overlay.trace.facts import Arrival, Hop, Leg, LinkFact, Party, PodEnd, Tunnel

# Where the kernel looks whether to forward (net/ipv4/route.c, net/ipv6/ip6_output.c).
_V4_LINK: Final = "net/ipv4/conf/{}/forwarding"
_V6_LINK: Final = "net/ipv6/conf/{}/force_forwarding"  # since Linux 6.17
_CONTAINER: Final = "this container; ask on the host itself"
_SWITCH: Final = {
    Family.IPV4: "net/ipv4/ip_forward",
    Family.IPV6: "net/ipv6/conf/all/forwarding",
}


@dataclass(frozen=True, slots=True)
class Surveyor:
    """Reads legs on this node: ``pods`` are its attachments by address."""

    ground: Ground
    ruleset: Listing
    pods: Mapping[IPAddress, Attachment]

    def leg(self, packet: Packet, source: Party, destination: Party) -> Leg:
        """Return the way of ``packet`` from one party to the other. Raises KernelError."""
        packet = replace(packet, source_device=self.ground.device_towards(packet.source))
        pod = self.pods.get(packet.source) if source.is_here else None
        if pod is not None and pod.link:
            end = self._pod_end(pod, packet)
            leg = Leg(replace(packet, iif=_routed_by(pod)), "pod", source=end)
        elif source.is_here and source.kind == "node":
            leg = Leg(packet, "node")
        else:
            leg = self._from_afar(packet, source, destination)
        peer = self._peer(packet, destination)
        leg = replace(leg, peer=peer, has_rule=self.ground.has_rule(packet.source))
        if leg.entry != "node" and leg.packet.iif not in self.ground.links:
            return leg
        return self._routed(leg, destination)

    def _from_afar(self, packet: Packet, source: Party, destination: Party) -> Leg:
        """Return a leg that begins at this node's edge: a tunnel, or another interface."""
        device = packet.source_device or ""
        if source.kind == "node" and destination.kind == "pod" and source.holder is not None:
            # Nodes speak to pods through the tunnel, as pods to nodes (docs/decisions/0003).
            network = source.holder.network(packet.family)
            if network is not None:
                device = self.ground.device_towards(network.network_address) or device
        link = self.ground.link(device)
        packet = replace(packet, iif=device)
        if link is None or not link.vni:
            return Leg(packet, "outside")
        return Leg(packet, "tunnel", arrival=self._arrival(link, source))

    def _arrival(self, link: LinkFact, source: Party) -> Arrival | None:
        if link.local is None or source.holder is None:
            return None
        family = Family(link.local.version)
        public = source.holder.public.get(family)
        if public is None:
            return None
        outer = Packet(
            source=public,
            destination=link.local,
            protocol="udp",
            port=link.port,
            iif=self.ground.device_towards(public) or link.lower,
            vni=source.holder.vnis.get(family, link.vni),
            destination_type="local",
        )
        return Arrival(link, outer, verdicts(self.ruleset, "input", outer))

    def _peer(self, packet: Packet, destination: Party) -> Hop | None:
        holder = destination.holder
        network = holder.network(packet.family) if holder is not None else None
        if destination.is_here or network is None:
            return None
        asked = replace(packet, destination=network.network_address)
        return self.ground.hop(asked, is_local=True)

    def _routed(self, leg: Leg, destination: Party) -> Leg:
        packet, ruleset = leg.packet, self.ruleset
        is_local = leg.entry == "node"
        hop = self.ground.hop(packet, is_local=is_local)
        leaves = hop.route.kind != "local"
        packet = replace(
            packet,
            oif=hop.route.device if leaves else "",
            destination_type="unicast" if leaves else "local",
        )
        hook = "output" if is_local else "forward" if leaves else "input"
        postrouting: tuple[Verdict, ...] = ()
        if leaves and hop.route.is_way and not packet.is_answer:
            postrouting = verdicts(ruleset, "postrouting", packet)
        pod = self.pods.get(packet.destination) if destination.is_here else None
        return replace(
            leg,
            packet=packet,
            forwarding_off=_forwarding_off(packet) if leaves and not is_local else "",
            prerouting=() if is_local else verdicts(ruleset, "prerouting", packet),
            hop=hop,
            passing=verdicts(ruleset, hook, packet) if hop.route.is_way else (),
            postrouting=postrouting,
            tunnel=self._tunnel(hop) if hop.link is not None and hop.link.vni else None,
            delivery=self._pod_end(pod, _answer(packet)) if pod is not None else None,
        )

    def _tunnel(self, hop: Hop) -> Tunnel | None:
        link, neighbor = hop.link, hop.neighbor
        if link is None or neighbor is None:
            return None
        destinations = self.ground.forwarding(link.name, neighbor.mac)
        if not destinations or link.local is None:
            return Tunnel(link, destinations, lower=self.ground.link(link.lower))
        outer = Packet(
            link.local,
            destinations[0],
            "udp",
            port=link.port,
            vni=link.vni,
            destination_type="unicast",
        )
        way = self.ground.hop(outer, is_local=True)
        outer = replace(outer, oif=way.route.device)
        output = verdicts(self.ruleset, "output", outer)
        if not any(verdict.stops for verdict in output):
            output += verdicts(self.ruleset, "postrouting", outer)
        return Tunnel(link, destinations, outer, way, output, self.ground.link(link.lower))

    def _gateway(self, pod: Attachment, address: IPAddress) -> IPAddress | None:
        if pod.mode != BRIDGE:
            return GATEWAY[family_of(address)]
        route = self.ground.route(Packet(address, address), is_local=True)
        return route.prefix[1] if route.prefix is not None and route.prefix[0] != address else None

    def _pod_end(self, pod: Attachment, packet: Packet) -> PodEnd:
        """Return a pod's side of ``packet``, which it sends."""
        end = PodEnd(
            shown=_name(pod),
            container=pod.key.container,
            interface=pod.key.interface,
            sandbox=pod.sandbox,
            address=packet.source,
            link=pod.link,
            outside=self.ground.link(pod.link),
            routed=self.ground.link(_routed_by(pod)),
            gateway=self._gateway(pod, packet.source),
        )
        try:
            descriptor = os.open(pod.sandbox, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            if hides_processes():  # nor are the runtime's mounts to be seen
                return replace(end, unseen=f"{pod.sandbox}: {exc.strerror} in {_CONTAINER}")
            return replace(end, trouble=f"{pod.sandbox}: {exc.strerror}")
        try:
            with closing(open_rtnl(descriptor)) as inside:
                return _inside(end, Ground(inside, is_bound=True), packet)
        except NamespaceEntryError as exc:
            return replace(end, unseen=str(exc))
        except KernelError as exc:
            return replace(end, trouble=f"{pod.sandbox}: {exc}")
        finally:
            os.close(descriptor)


def _inside(end: PodEnd, pod: Ground, packet: Packet) -> PodEnd:
    link = pod.link(end.interface)
    if link is None:
        return end
    index = pod.links[end.interface].index
    answer = pod.rtnl.dump(messages.RTM_GETADDR, messages.addresses_request(index))
    present = {a.address.ip for a in parse.addresses(answer, end.interface, index)}
    has_address = packet.source in present
    hop = pod.hop(packet, is_local=True) if has_address else None
    return replace(end, inside=link, has_address=has_address, hop=hop)


def _routed_by(pod: Attachment) -> str:
    """Return the device by which the node routes what ``pod`` sends and receives."""
    return POD_BRIDGE if pod.mode == BRIDGE else pod.link


def _forwarding_off(packet: Packet) -> str:
    """Return the sysctl that keeps the node from forwarding what comes in there, empty for none.

    IPv4 asks each link; the node's own switch, written, sets them all.
    """
    switch = _SWITCH[packet.family]
    is_off = sysctl.read(switch) == "0"
    if packet.family is Family.IPV6:
        return switch if is_off and sysctl.read(_V6_LINK.format(packet.iif)) != "1" else ""
    link = _V4_LINK.format(packet.iif)
    if sysctl.read(link) != "0":  # None where it went meanwhile; the route will tell
        return ""
    return switch if is_off else link


def _answer(packet: Packet) -> Packet:
    return replace(
        packet,
        source=packet.destination,
        destination=packet.source,
        source_port=packet.port,
        port=packet.source_port,
        is_answer=True,
        iif="",
        oif="",
    )


def _name(pod: Attachment) -> str:
    names = (pod.arguments.get("K8S_POD_NAMESPACE"), pod.arguments.get("K8S_POD_NAME"))
    known = "/".join(name for name in names if name)
    return f"pod {known}" if known else f"container {pod.key.container[:13]}"


def legacy_tables() -> list[str]:
    """Return a note for each iptables-legacy filter table: its rules are not among nft's."""
    found = []
    for family, command in (("", "iptables"), ("6", "ip6tables")):
        # thread-self, not self: a thread may be in another network namespace than its process.
        path = Path(f"/proc/thread-self/net/ip{family}_tables_names")
        try:
            names = path.read_text().split()
        except OSError:
            continue
        if "filter" in names:
            found.append(
                f"{command}-legacy has a filter table, which may also decide and is not read here: "
                f"{command}-legacy -S FORWARD"
            )
    return found
