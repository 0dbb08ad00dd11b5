"""What the kernel holds of ours, in the words that checks need."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from overlay.model.address import Family, IPAddress, IPNetwork, family_of
from overlay.model.kernel import (
    MAIN_TABLE,
    FdbEntry,
    KernelObject,
    Route,
    Rule,
    UnreachableRoute,
    VxlanLink,
)
from overlay.policy.packet import Packet

DEFAULT_PORT = 8472  # flannel's, and so ours
# Of the ranges for documentation (RFC 5737, RFC 3849): nobody has a rule for them.
NOBODY: Final = {
    Family.IPV4: ip_address("203.0.113.1"),
    Family.IPV6: ip_address("2001:db8:ffff::1"),
}


@dataclass(frozen=True, slots=True)
class Fabric:
    """This node's part of the fabric, as it stands in the kernel; empty before the first agent.

    ``networks`` are the pod networks, ``own`` this node's subnets, ``peers``
    the underlay addresses that packets are sent to.
    """

    objects: tuple[KernelObject, ...]
    devices: tuple[VxlanLink, ...]
    networks: tuple[IPNetwork, ...]
    own: tuple[IPNetwork, ...]
    peers: tuple[IPAddress, ...]

    @property
    def is_there(self) -> bool:
        """Return whether an agent has been at work here."""
        return bool(self.objects)

    @property
    def families(self) -> Sequence[Family]:
        """Return the families that pods have; IPv4 where nothing is known yet."""
        found = {family_of(network) for network in self.networks}
        return sorted(found) or [Family.IPV4]

    @property
    def ports(self) -> Sequence[int]:
        """Return the UDP ports of the devices, or the usual one; none where nothing tunnels."""
        if self.is_there and not self.devices and not self.own:
            return []
        return sorted({device.port for device in self.devices}) or [DEFAULT_PORT]

    @property
    def underlays(self) -> Sequence[str]:
        """Return the interfaces that carry the devices."""
        return sorted({device.underlay for device in self.devices if device.underlay})

    def tunnel_packet(self, family: Family, port: int) -> Packet:
        """Return a packet of a peer to the tunnel's ``port``, as far as it is known."""
        peer = next((each for each in self.peers if family_of(each) is family), None)
        local = next((d.local for d in self.devices if family_of(d.local) is family), None)
        link = next(iter(self.underlays), "")
        known = {"source": peer, "destination": local, "iif": link}
        return Packet(
            peer or NOBODY[family],
            local or NOBODY[family],
            "udp",
            port=port,
            iif=link,
            destination_type="local",
            unknown=frozenset(name for name, value in known.items() if not value),
        )


def fabric_of(objects: Iterable[KernelObject]) -> Fabric:
    """Return what ``objects``, a dump of the kernel, say."""
    found = tuple(objects)
    peers: dict[IPAddress, None] = {}
    for item in found:
        if isinstance(item, FdbEntry):
            peers[item.destination] = None
        elif isinstance(item, Route) and item.table == MAIN_TABLE and not item.onlink:
            direct = item.gateway
            peers |= {} if direct is None else {direct: None}
    return Fabric(
        objects=found,
        devices=tuple(item for item in found if isinstance(item, VxlanLink)),
        networks=tuple(item.prefix for item in found if isinstance(item, UnreachableRoute)),
        own=tuple(dict.fromkeys(item.source for item in found if isinstance(item, Rule))),
        peers=tuple(peers),
    )
