"""What is asked of a VXLAN device at each join and each repair, as packed messages.

Loading pyroute2 for the one device of a join cost 75 ms of CPU and 10 MiB
(November 2026). What is rare, a device with other parameters or another name,
is left to it (links.py). Layouts: linux/if_link.h.
"""

import struct
from typing import Final

from overlay.kernel.rtnl import NLM_F_CREATE, NLM_F_EXCL, Request
from overlay.kernel.wire import attribute
from overlay.model.address import MacAddress
from overlay.model.kernel import LINK_ALIAS, VxlanLink

RTM_NEWLINK, RTM_GETLINK = 16, 18
IFINFOMSG: Final = struct.Struct("=BBHiII")  # family, padding, type, index, flags, change
IFF_UP: Final = 1
ADDRESS, IFNAME, MTU, LINKINFO, IFALIAS, AF_SPEC = 1, 3, 4, 18, 20, 26
INFO_KIND, INFO_DATA = 1, 2
ID, LOWER, LOCAL, LEARNING, PORT, LOCAL6, GBP = 1, 3, 4, 7, 15, 17, 23
_AF_INET6: Final = 10
_INET6_ADDR_GEN_MODE: Final = 8
_ADDRGEN_NONE: Final = 1  # IN6_ADDR_GEN_MODE_NONE
_U32: Final = struct.Struct("=I")


def made(link: VxlanLink, underlay: int) -> Request:
    """Return what makes ``link``, down, on the interface with index ``underlay``.

    ``ip link add NAME address MAC mtu MTU type vxlan id VNI dev UNDERLAY dstport PORT ...``
    """
    local = LOCAL if link.local.version == 4 else LOCAL6
    data = (
        attribute(ID, _U32.pack(link.vni))
        + attribute(LOWER, _U32.pack(underlay))
        + attribute(local, link.local.packed)
        + attribute(PORT, link.port.to_bytes(2, "big"))
        + attribute(LEARNING, b"\0")
        + (attribute(GBP, b"") if link.gbp else b"")
    )
    info = attribute(INFO_KIND, b"vxlan\0") + attribute(INFO_DATA, data)
    body = (
        IFINFOMSG.pack(0, 0, 0, 0, 0, 0)
        + attribute(IFNAME, link.name.encode() + b"\0")
        + _address(link.mac)
        + _mtu(link.mtu)
        + attribute(LINKINFO, info)
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def raised(index: int) -> Request:
    """Return what sets a link up: ``ip link set dev NAME up``."""
    return _set(index, IFF_UP, IFF_UP)


def lowered(index: int) -> Request:
    """Return what sets a link down: ``ip link set dev NAME down``."""
    return _set(index, 0, IFF_UP)


def addressed(index: int, mac: MacAddress) -> Request:
    """Return what gives a link its MAC address: ``ip link set dev NAME address MAC``."""
    return _set(index, 0, 0, _address(mac))


def sized(index: int, mtu: int) -> Request:
    """Return what sets a link's MTU in bytes: ``ip link set dev NAME mtu MTU``."""
    return _set(index, 0, 0, _mtu(mtu))


def marked(index: int) -> Request:
    """Return what marks a link as ours: ``ip link set dev NAME alias overlay-fabric``."""
    return _set(index, 0, 0, attribute(IFALIAS, LINK_ALIAS.encode()))


def silenced(index: int) -> Request:
    """Return what forbids a link-local address: ``ip link set dev NAME addrgenmode none``.

    A kernel without IPv6 refuses it.
    """
    mode = attribute(_INET6_ADDR_GEN_MODE, bytes((_ADDRGEN_NONE,)))
    return _set(index, 0, 0, attribute(AF_SPEC, attribute(_AF_INET6, mode)))


def by_name(name: str) -> bytes:
    """Return the body of a question for the link of a name."""
    return IFINFOMSG.pack(0, 0, 0, 0, 0, 0) + attribute(IFNAME, name.encode() + b"\0")


def _set(index: int, flags: int, change: int, attributes: bytes = b"") -> Request:
    return Request(RTM_NEWLINK, 0, IFINFOMSG.pack(0, 0, 0, index, flags, change) + attributes)


def _address(mac: MacAddress) -> bytes:
    return attribute(ADDRESS, bytes.fromhex(mac.replace(":", "")))


def _mtu(mtu: int) -> bytes:
    return attribute(MTU, _U32.pack(mtu))
