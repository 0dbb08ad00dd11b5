"""The ports of the node's bridge, and what it answers for (``overlay.kernel.bridge``)."""

import errno
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Final

from overlay.kernel import messages
from overlay.kernel.base import KernelError
from overlay.kernel.link_requests import RTM_GETLINK
from overlay.kernel.links import LinkInfo
from overlay.kernel.rtnl import NLM_F_CREATE, NLM_F_REPLACE, Request, RtnlSocket
from overlay.kernel.wire import attribute, attributes
from overlay.model.address import IPAddress, MacAddress, family_of
from overlay.model.node import POD_BRIDGE

_RTM_NEWLINK, _RTM_SETLINK = 16, 19
_IFINFOMSG: Final = struct.Struct("=BBHiII")
_NDMSG: Final = struct.Struct("=BBHiHBB")
_U32: Final = struct.Struct("=I")
_AF_BRIDGE, _AF_INET6 = 7, 10
_IFF_UP: Final = 1
_IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC = 10, 12, 18, 20, 26
_IFLA_INFO_SLAVE_DATA: Final = 5
_IFLA_BRPORT_STATE, _IFLA_BRPORT_MODE = 1, 4
_BR_STATE_FORWARDING: Final = 3
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
ADDR_GEN_EUI64, ADDR_GEN_NONE = 0, 1  # linux/if_link.h
_NLA_F_NESTED: Final = 0x8000
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_PROXY: Final = 0x08
_NUD_REACHABLE: Final = 0x02


def hold_ports(
    rtnl: RtnlSocket, bridge: int, names: Iterable[str], links: Mapping[str, LinkInfo]
) -> list[str]:
    """Put links that left the bridge back on it, and up; return what was put right."""
    changes: list[str] = []
    requests: list[Request] = []
    for name in names:
        link = links.get(name)
        if link is None or (link.master == bridge and link.is_up):
            continue
        changes.append(f"link {name} put back on {POD_BRIDGE}")
        requests += [enslaving(link.index, bridge), *port_settings(link.index)]
    for refusal in rtnl.send(requests) if requests else ():
        if refusal.errno != errno.ENODEV:  # the pod went meanwhile
            raise KernelError(f"port of {POD_BRIDGE}: {refusal.text}")
    return changes


def hold_proxies(rtnl: RtnlSocket, bridge: int, wanted: Iterable[IPAddress]) -> None:
    """Answer on the bridge for these IPv6 addresses, and for no others. Raises KernelError."""
    targets = {a for a in wanted if isinstance(a, IPv6Address)}
    present = proxies(rtnl, bridge)
    requests = [
        _proxy(messages.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, bridge, address)
        for address in sorted(targets - present)
    ]
    requests += [
        _proxy(messages.RTM_DELNEIGH, 0, bridge, address) for address in sorted(present - targets)
    ]
    for refusal in rtnl.send(requests) if requests else ():
        if refusal.errno not in {errno.ENOENT, errno.EEXIST}:
            raise KernelError(f"{POD_BRIDGE}: proxy entry: {refusal.text}")


def enslaving(index: int, bridge: int) -> Request:
    """Return what makes a link a port of the bridge, and sets it up."""
    body = _IFINFOMSG.pack(0, 0, 0, index, _IFF_UP, _IFF_UP)
    return Request(_RTM_NEWLINK, 0, body + attribute(_IFLA_MASTER, _U32.pack(bridge)))


def port_settings(index: int) -> list[Request]:
    """Return what a port has: hairpin, and no IPv6 address of its own."""
    mode = attribute(_IFLA_BRPORT_MODE, b"\1")
    body = _IFINFOMSG.pack(_AF_BRIDGE, 0, 0, index, 0, 0)
    body += attribute(_IFLA_PROTINFO | _NLA_F_NESTED, mode)
    return [Request(_RTM_SETLINK, 0, body), address_generation(index, ADDR_GEN_NONE)]


def address_generation(index: int, mode: int) -> Request:
    """Return what says how a link makes its IPv6 link-local address."""
    inner = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes((mode,)))
    spec = attribute(_IFLA_AF_SPEC, attribute(_AF_INET6, inner))
    return Request(_RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, 0, index, 0, 0) + spec)


def naming(index: int, addresses: Iterable[IPAddress]) -> Request:
    """Return what notes a pod's addresses on its port, for ``addresses_of``."""
    alias = attribute(_IFLA_IFALIAS, " ".join(map(str, addresses)).encode())
    return Request(_RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, 0, index, 0, 0) + alias)


def addresses_of(port: LinkInfo) -> list[IPAddress]:
    """Return the addresses noted on a port; none where somebody wrote something else there."""
    try:
        return [ip_address(word) for word in port.alias.split()]
    except ValueError:
        return []


def known_neighbor(bridge: int, address: IPAddress, mac: MacAddress) -> Request:
    """Return what tells the node a pod's MAC address, until it is asked for anew.

    Without it, one that got another pod's address would be out of reach while
    the old entry lasts.
    """
    family = messages.AF[family_of(address)]
    body = _NDMSG.pack(family, 0, 0, bridge, _NUD_REACHABLE, 0, 0)
    body += attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, _packed(mac))
    return Request(messages.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def is_forwarding(rtnl: RtnlSocket, index: int) -> bool:
    """Return whether a port carries frames yet: a moment after both its ends are up."""
    answer = rtnl.ask(RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, index, 0, 0))
    if answer is None:
        return False
    data, start, end = answer
    info = attributes(data, start + 16, end).get(_IFLA_LINKINFO, b"")
    port = attributes(info, 0, len(info)).get(_IFLA_INFO_SLAVE_DATA, b"")
    state = attributes(port, 0, len(port)).get(_IFLA_BRPORT_STATE, b"")
    return state[:1] == bytes((_BR_STATE_FORWARDING,))


def proxies(rtnl: RtnlSocket, bridge: int) -> set[IPAddress]:
    """Return the addresses that are answered for: ``ip -6 neigh show proxy dev opod-bridge``."""
    found: set[IPAddress] = set()
    body = _NDMSG.pack(_AF_INET6, 0, 0, 0, 0, _NTF_PROXY, 0)
    for data, start, end in rtnl.dump(messages.RTM_GETNEIGH, body):
        _family, _, _, index, _state, flags, _type = _NDMSG.unpack_from(data, start)
        target = attributes(data, start + _NDMSG.size, end).get(_NDA_DST)
        if index == bridge and flags & _NTF_PROXY and target is not None and len(target) == 16:
            found.add(IPv6Address(target))
    return found


def _proxy(kind: int, flags: int, bridge: int, address: IPAddress) -> Request:
    body = _NDMSG.pack(_AF_INET6, 0, 0, bridge, 0, _NTF_PROXY, 0)
    return Request(kind, flags, body + attribute(_NDA_DST, address.packed))


def _packed(mac: MacAddress) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
