"""A node: who it is, and where it stands in the underlay."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from overlay.model.address import Family, IPAddress, IPInterface, MacAddress

_IFNAMSIZ: Final = 15  # usable bytes of an interface name (linux/if.h)
POD_LINK_PREFIX: Final = "opod"  # the host's end of a pod's veth pair
# Begins as the pods' links do: what holds for packets from those holds for its own.
POD_BRIDGE: Final = "opod-bridge"
# Each node's bridge is a segment of its own, so that one address does for all.
POD_BRIDGE_MAC: Final = MacAddress("02:6f:76:6c:00:01")


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who a node is: ``id`` is its machine id or ``--node-name`` and survives a new address.

    ``boot`` tells hosts of one id apart: another one after each boot of the
    host, empty where it is not known.
    """

    id: str
    name: str
    boot: str = ""


@dataclass(frozen=True, slots=True)
class Underlay:
    """The interface that carries the fabric.

    ``local`` has the node's own address and prefix on it for each family,
    ``public`` what peers reach it at (the same unless a flag says otherwise).
    """

    device: str
    mtu: int  # bytes
    local: Mapping[Family, IPInterface] = field(default_factory=dict)
    public: Mapping[Family, IPAddress] = field(default_factory=dict)

    def is_on_link(self, address: IPAddress) -> bool:
        """Return whether ``address`` is on the same layer 2, so that no router is between."""
        return any(
            interface.version == address.version and address in interface.network
            for interface in self.local.values()
        )


def vtep_mac(node_id: str, vni: int, family: Family) -> MacAddress:
    """Return a node's VTEP MAC address: the same after every re-creation of the device.

    Locally administered and unicast (IEEE 802, section 8.2): bit 1 of the
    first byte set, bit 0 clear.
    """
    seed = f"{node_id}\0{vni}\0{family.value}".encode()
    digest = hashlib.sha256(seed).digest()
    first = (digest[0] | 0x02) & 0xFE
    return MacAddress(":".join(f"{byte:02x}" for byte in (first, *digest[1:6])))


def vtep_device(vni: int, family: Family) -> str:
    """Return the name of the VXLAN device for a VNI and the underlay's family.

    >>> vtep_device(1, Family.IPV4), vtep_device(1, Family.IPV6)
    ('overlay.1', 'overlay-v6.1')
    >>> vtep_device(16777215, Family.IPV6)
    'ovl6.16777215'
    """
    name = f"overlay.{vni}" if family is Family.IPV4 else f"overlay-v6.{vni}"
    if len(name) <= _IFNAMSIZ:
        return name
    return f"ovl{family.value}.{vni}"


def is_vtep_device(name: str) -> bool:
    """Return whether ``name`` is one that ``vtep_device`` gives; manifests/ has the patterns too.

    >>> is_vtep_device("ovl6.16777215"), is_vtep_device("overlayfs0")
    (True, False)
    """
    return name.startswith(("overlay.", "overlay-v6.", "ovl4.", "ovl6."))
