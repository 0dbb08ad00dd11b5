"""What the kernel holds of ours, in the words that checks need."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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

DEFAULT_PORT = 8472  # flannel's, and so ours


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
