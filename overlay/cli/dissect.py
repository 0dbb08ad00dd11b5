"""VXLAN packets as text, by scapy, with names in place of bare addresses; the inner packet first.

scapy is an extra, and takes half a second to load: only ``capture`` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from overlay.model.address import IPAddress, family_of
from overlay.model.errors import OverlayError
from overlay.trace.holders import Knowledge


class NoScapyError(OverlayError):
    """scapy is not installed."""


@dataclass(frozen=True, slots=True)
class Names:
    """Who has an address: nodes by their underlay's, pods by their own."""

    nodes: Mapping[IPAddress, str]
    pods: Mapping[IPAddress, str]
    knowledge: Knowledge

    def of(self, address: IPAddress) -> str:
        """Return the name of a node or a pod; of another node's pod, that node's. Else ""."""
        name = self.nodes.get(address) or self.pods.get(address)
        if name:
            return name
        for holder in self.knowledge.holders:
            network = holder.network(family_of(address))
            if network is not None and address in network:
                return f"pod of {holder.node}"
        return ""


def names_of(knowledge: Knowledge) -> Names:
    """Return the names that leases and attachments give."""
    own = (knowledge.own,) if knowledge.own is not None else ()
    holders = (*knowledge.holders, *own)
    nodes = {a: h.node for h in holders for a in h.public.values()}
    # The address of the VXLAN device: what nodes themselves send through the tunnel.
    nodes |= {n.network_address: f"tunnel of {h.node}" for h in holders for n in h.networks}
    pods = {a: _pod(pod.arguments, pod.key.container) for pod in knowledge.attachments
            for a in pod.addresses}  # fmt: skip
    return Names(nodes, pods, knowledge)


class Dissector:
    """Turns frames into documents. Raises NoScapyError where scapy is not installed."""

    def __init__(self, names: Names) -> None:
        try:
            from scapy.config import conf

            # It would read every route of the node, of which nothing is asked here.
            conf.route_autoload = conf.route6_autoload = False
            from scapy.layers import inet, inet6, l2, vxlan
        except ImportError as exc:
            msg = (
                "capture needs scapy, which is not installed here: "
                "`pip install 'overlay-fabric[capture]'` beside overlayctl, or Debian's "
                "python3-scapy"
            )
            raise NoScapyError(msg) from exc
        self._ether, self._vxlan = l2.Ether, vxlan.VXLAN
        self._ip, self._ip6, self._udp = inet.IP, inet6.IPv6, inet.UDP
        self._tcp, self._icmp = inet.TCP, inet.ICMP
        self._names = names

    def document(self, frame: bytes) -> dict[str, Any] | None:
        """Return what a frame is; None for one that is not VXLAN, cut off too soon."""
        outside = self._ether(frame)
        udp = outside.getlayer(self._udp)
        outer = outside.getlayer(self._ip) or outside.getlayer(self._ip6)
        if udp is None or outer is None:
            return None
        # By the tunnel's port, whatever number it has: scapy knows the usual ones alone.
        tunnel = self._vxlan(bytes(udp.payload))
        inside = tunnel.payload
        packet = inside.getlayer(self._ip) or inside.getlayer(self._ip6)
        return {
            "inner": self._end(packet) if packet is not None else None,
            "summary": self._summary(inside, packet),
            "outer": self._end(outer),
            "vni": int(tunnel.vni) if tunnel.vni is not None else None,
            "bytes": len(inside),
        }

    def line(self, document: Mapping[str, Any]) -> str:
        """Return a document as one line: who speaks to whom inside, then outside."""
        inner = document["inner"]
        inside = f"{_shown(inner, 'source')} > {_shown(inner, 'destination')} " if inner else ""
        outer = document["outer"]
        outside = f"{_shown(outer, 'source')} > {_shown(outer, 'destination')}"
        return f"{inside}{document['summary']} | {outside} VNI {document['vni']}"

    def _end(self, packet: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for side, text in (("source", packet.src), ("destination", packet.dst)):
            found[side] = text
            found[f"{side}_name"] = self._names.of(ip_address(text)) or None
        return found

    def _summary(self, inside: Any, packet: Any) -> str:
        if packet is None:
            return str(inside.summary())
        tcp, udp = packet.getlayer(self._tcp), packet.getlayer(self._udp)
        if tcp is not None:
            return f"tcp {tcp.sport} > {tcp.dport} {tcp.flags} {len(tcp.payload)} bytes"
        if udp is not None:
            return f"udp {udp.sport} > {udp.dport} {len(udp.payload)} bytes"
        icmp = packet.getlayer(self._icmp)
        if icmp is not None:
            return f"icmp {icmp.sprintf('%ICMP.type%')} id {icmp.id} seq {icmp.seq}"
        return str(packet.payload.summary()).split(" / Raw")[0]


def _shown(end: Mapping[str, Any], side: str) -> str:
    name = end[f"{side}_name"]
    return f"{end[side]} ({name})" if name else str(end[side])


def _pod(arguments: Mapping[str, str], container: str) -> str:
    names = (arguments.get("K8S_POD_NAMESPACE"), arguments.get("K8S_POD_NAME"))
    return "/".join(name for name in names if name) or container[:13]
