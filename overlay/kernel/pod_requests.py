"""The rtnetlink messages that a pod's interface is made of, as bytes at once.

A pod waits for each of them, so nothing is made of objects that is thrown away
again: half of what they cost was that (November 2026). Layouts:
linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h.
"""

import socket
import struct
from typing import Final

from overlay.kernel.rtnl import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request
from overlay.kernel.wire import Message, attribute, attribute_of, decoder
from overlay.model.address import Family, IPAddress, MacAddress
from overlay.model.kernel import MAIN_TABLE, POD_ROUTE_PROTOCOL

RTM_NEWLINK, RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_NEWROUTE, _RTM_NEWNEIGH = 20, 24, 28

_IFINFOMSG: Final = struct.Struct("=BBHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBI")
_NDMSG: Final = struct.Struct("=BBHiHBB")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_U32: Final = struct.Struct("=I")

_IFF_UP: Final = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_LINKINFO, _IFLA_GROUP, _IFLA_NET_NS_FD = 18, 27, 28
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 31, 32
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD: Final = 0x02
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT: Final = 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RTN_UNICAST, _RTNH_F_ONLINK = 1, 4
GLOBAL, LINK, HOST = 0, 253, 254  # scopes: RT_SCOPE_*

_AF: Final = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}  # by IP version
_MAKE_OR_CHANGE: Final = NLM_F_CREATE | NLM_F_REPLACE
_ANY_LINK: Final = _IFINFOMSG.pack(0, 0, 0, 0, 0, 0)
_VETH: Final = attribute(_IFLA_INFO_KIND, b"veth")
# Else an end has two for each processor that there may ever be, each with directories in
# /sys: 64 processors make it 1.4 ms instead of 0.3 (November 2026). They serve who
# switches GRO or XDP on for the pair; without, a packet goes by the sender's processor.
_ONE_QUEUE: Final = attribute(_IFLA_NUM_TX_QUEUES, _U32.pack(1)) + attribute(
    _IFLA_NUM_RX_QUEUES, _U32.pack(1)
)


def pair(
    host: tuple[str, MacAddress],
    pod: tuple[str, MacAddress],
    mtu: int,
    netns: int,
    group: int,
) -> Request:
    """Return what makes a veth pair, ``pod``'s end in the namespace behind ``netns``.

    ``group`` is that of the host's end.
    """
    size = attribute(_IFLA_MTU, _U32.pack(mtu)) + _ONE_QUEUE
    peer = _ANY_LINK + _named(*pod) + size + attribute(_IFLA_NET_NS_FD, _U32.pack(netns))
    data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
    body = _ANY_LINK + _named(*host) + size + attribute(_IFLA_GROUP, _U32.pack(group))
    body += attribute(_IFLA_LINKINFO, _VETH + data)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


@decoder
def ends(told: Message) -> tuple[int, int]:
    """Return the index of a pair's end, and that of the other in its own namespace or 0."""
    data, start, end = told
    peer = attribute_of(_IFLA_LINK, data, start + _IFINFOMSG.size, end) or bytes(4)
    return int(_IFINFOMSG.unpack_from(data, start)[3]), int(_U32.unpack(peer)[0])


def own_routes(family: Family) -> bytes:
    """Return the body of a dump of the host's routes to pods: ``ip route show proto 80``."""
    return _RTMSG.pack(_AF[family.value], 0, 0, 0, MAIN_TABLE, POD_ROUTE_PROTOCOL, 0, 0, 0)


def removal(name: str) -> Request:
    """Return what removes a link, and with it the other end: ``ip link del NAME``."""
    return Request(RTM_DELLINK, 0, by_name(name))


def by_name(name: str) -> bytes:
    """Return the body of a message about the link called so."""
    return _ANY_LINK + attribute(_IFLA_IFNAME, name.encode() + b"\0")


def up(index: int) -> Request:
    """Return ``ip link set IFACE up``."""
    return Request(RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, 0, index, _IFF_UP, _IFF_UP))


def address(index: int, own: IPAddress, length: int, scope: int = GLOBAL) -> Request:
    """Return ``ip addr replace OWN/LENGTH dev IFACE nodad scope SCOPE``."""
    packed = own.packed
    body = (
        _IFADDRMSG.pack(_AF[own.version], length, 0, scope, index)
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
    )
    if own.version == 6:  # nobody else has it, and a pod does not wait to be told so
        body += attribute(_IFA_FLAGS, _U32.pack(_IFA_F_NODAD))
    return Request(_RTM_NEWADDR, _MAKE_OR_CHANGE, body)


def neighbor(index: int, whose: IPAddress, mac: MacAddress) -> Request:
    """Return ``ip neigh replace WHOSE lladdr MAC dev IFACE nud permanent``."""
    body = (
        _NDMSG.pack(_AF[whose.version], 0, 0, index, _NUD_PERMANENT, 0, 0)
        + attribute(_NDA_DST, whose.packed)
        + attribute(_NDA_LLADDR, _packed(mac))
    )
    return Request(_RTM_NEWNEIGH, _MAKE_OR_CHANGE, body)


def link_route(index: int, to: IPAddress, flag: int) -> Request:
    """Return ``ip route add TO dev IFACE scope link proto 80``."""
    scope = LINK if to.version == 4 else GLOBAL
    head = (_AF[to.version], to.max_prefixlen, 0, 0, MAIN_TABLE, POD_ROUTE_PROTOCOL, scope)
    body = (
        _RTMSG.pack(*head, _RTN_UNICAST, 0)
        + attribute(_RTA_DST, to.packed)
        + attribute(_RTA_OIF, _U32.pack(index))
    )
    return Request(_RTM_NEWROUTE, NLM_F_CREATE | flag, body)


def default_route(index: int, gateway: IPAddress) -> Request:
    """Return ``ip route add default via GATEWAY dev IFACE onlink proto 80``."""
    # On-link, for another interface of the pod may hold the route to the gateway.
    head = (_AF[gateway.version], 0, 0, 0, MAIN_TABLE, POD_ROUTE_PROTOCOL, GLOBAL)
    body = (
        _RTMSG.pack(*head, _RTN_UNICAST, _RTNH_F_ONLINK)
        + attribute(_RTA_OIF, _U32.pack(index))
        + attribute(_RTA_GATEWAY, gateway.packed)
    )
    return Request(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body)


def _named(name: str, mac: MacAddress) -> bytes:
    return attribute(_IFLA_IFNAME, name.encode() + b"\0") + attribute(_IFLA_ADDRESS, _packed(mac))


def _packed(mac: MacAddress) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
