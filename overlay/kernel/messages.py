"""Kernel objects as rtnetlink requests, and the questions for them."""

import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final

from overlay.kernel.rtnetlink import (
    AF_BRIDGE,
    FRA_PRIORITY,
    FRA_PROTOCOL,
    FRA_SRC,
    FRA_TABLE,
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    IFADDRMSG,
    IP6_RT_PRIO_USER,
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDMSG,
    NUD_PERMANENT,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_TABLE,
    RTMSG,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_ONLINK,
    RULE,
)
from overlay.kernel.rtnl import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request
from overlay.kernel.wire import attribute
from overlay.model.address import Family, IPNetwork, family_of
from overlay.model.kernel import (
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    UNREACHABLE_METRIC,
    FdbEntry,
    ForeignRoute,
    LinkAddress,
    Neighbor,
    Op,
    Route,
    Rule,
    UnreachableRoute,
)

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

AF: Final[Mapping[Family, int]] = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_U32: Final = struct.Struct("=I")
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_RT_SCOPE_NOWHERE: Final = 255  # of a route to delete: any
_RTM_F_FIB_MATCH: Final = 0x2000
_NTF_SELF: Final = 0x02
_IFA_F_NODAD: Final = 0x02
_FR_ACT_TO_TBL: Final = 1

_MAKE_OR_CHANGE: Final = NLM_F_CREATE | NLM_F_REPLACE


def request(op: Op, index: Mapping[str, int]) -> Request:
    """Return the message for ``op``; ``index`` has the interface index of each device.

    Raises KeyError for a device that is not there.
    """
    return _ENCODERS[type(op.target)](op, index)


def _route(op: Op, index: Mapping[str, int]) -> Request:
    route = op.target
    assert isinstance(route, Route)  # noqa: S101 - by _ENCODERS
    family = AF[family_of(route.prefix)]
    scope = _RT_SCOPE_UNIVERSE
    if route.gateway is None and family == socket.AF_INET:
        scope = _RT_SCOPE_LINK
    body = RTMSG.pack(
        family,
        route.prefix.prefixlen,
        0,
        0,
        route.table if route.table < 256 else 0,
        ROUTE_PROTOCOL,
        scope,
        RTN_UNICAST,
        RTNH_F_ONLINK if route.onlink and op.verb == "set" else 0,
    ) + attribute(RTA_DST, route.prefix.network_address.packed)
    if route.table >= 256:
        body += attribute(RTA_TABLE, _U32.pack(route.table))
    if route.metric:
        body += attribute(RTA_PRIORITY, _U32.pack(route.metric))
    if op.verb == "del":
        return Request(RTM_DELROUTE, 0, body)
    body += attribute(RTA_OIF, _U32.pack(index[route.device]))
    if route.gateway is not None:
        body += attribute(RTA_GATEWAY, route.gateway.packed)
    # Made, not replaced: what stands there already is looked at first (netlink.py).
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body)


def _foreign(op: Op, index: Mapping[str, int]) -> Request:
    del index
    route = op.target
    assert isinstance(route, ForeignRoute)  # noqa: S101 - by _ENCODERS
    assert op.verb == "del"  # noqa: S101 - by what it is
    family, length = AF[family_of(route.prefix)], route.prefix.prefixlen
    body = RTMSG.pack(
        family, length, 0, 0, MAIN_TABLE, route.protocol, _RT_SCOPE_NOWHERE, 0, 0
    ) + attribute(RTA_DST, route.prefix.network_address.packed)
    if route.metric:
        body += attribute(RTA_PRIORITY, _U32.pack(route.metric))
    return Request(RTM_DELROUTE, 0, body)


def _unreachable(op: Op, index: Mapping[str, int]) -> Request:
    del index
    route = op.target
    assert isinstance(route, UnreachableRoute)  # noqa: S101 - by _ENCODERS
    body = RTMSG.pack(
        AF[family_of(route.prefix)],
        route.prefix.prefixlen,
        0,
        0,
        MAIN_TABLE,
        ROUTE_PROTOCOL,
        _RT_SCOPE_UNIVERSE,
        RTN_UNREACHABLE,
        0,
    )
    body += attribute(RTA_DST, route.prefix.network_address.packed)
    body += attribute(RTA_PRIORITY, _U32.pack(UNREACHABLE_METRIC))
    if op.verb == "del":
        return Request(RTM_DELROUTE, 0, body)
    return Request(RTM_NEWROUTE, _MAKE_OR_CHANGE, body)


def _neighbor(op: Op, index: Mapping[str, int]) -> Request:
    neighbor = op.target
    assert isinstance(neighbor, Neighbor)  # noqa: S101 - by _ENCODERS
    family = AF[family_of(neighbor.address)]
    body = NDMSG.pack(family, 0, 0, index[neighbor.device], NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, neighbor.address.packed)
    if op.verb == "del":
        return Request(RTM_DELNEIGH, 0, body)
    body += attribute(NDA_LLADDR, bytes.fromhex(neighbor.mac.replace(":", "")))
    return Request(RTM_NEWNEIGH, _MAKE_OR_CHANGE, body)


def _fdb(op: Op, index: Mapping[str, int]) -> Request:
    entry = op.target
    assert isinstance(entry, FdbEntry)  # noqa: S101 - by _ENCODERS
    body = NDMSG.pack(AF_BRIDGE, 0, 0, index[entry.device], NUD_PERMANENT, _NTF_SELF, 0)
    body += attribute(NDA_LLADDR, bytes.fromhex(entry.mac.replace(":", "")))
    if op.verb == "del":
        # Without a destination the kernel removes all of the MAC's.
        return Request(RTM_DELNEIGH, 0, body)
    body += attribute(NDA_DST, entry.destination.packed)
    return Request(RTM_NEWNEIGH, _MAKE_OR_CHANGE, body)


def _address(op: Op, index: Mapping[str, int]) -> Request:
    target = op.target
    assert isinstance(target, LinkAddress)  # noqa: S101 - by _ENCODERS
    interface = target.address
    family = AF[family_of(interface)]
    packed = interface.ip.packed
    body = IFADDRMSG.pack(family, interface.network.prefixlen, 0, 0, index[target.device])
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if op.verb == "del":
        return Request(RTM_DELADDR, 0, body)
    if family == socket.AF_INET6:
        # No duplicate-address detection: nobody but us answers on a VTEP.
        body += attribute(IFA_FLAGS, _U32.pack(_IFA_F_NODAD))
    return Request(RTM_NEWADDR, _MAKE_OR_CHANGE, body)


def _rule(op: Op, index: Mapping[str, int]) -> Request:
    del index
    rule = op.target
    assert isinstance(rule, Rule)  # noqa: S101 - by _ENCODERS
    body = RULE.pack(AF[rule.family], 0, rule.source.prefixlen, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
    body += attribute(FRA_SRC, rule.source.network_address.packed)
    body += attribute(FRA_PRIORITY, _U32.pack(rule.priority))
    body += attribute(FRA_TABLE, _U32.pack(rule.table))
    body += attribute(FRA_PROTOCOL, bytes((ROUTE_PROTOCOL,)))
    if op.verb == "del":
        return Request(RTM_DELRULE, 0, body)
    return Request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body)


_ENCODERS: Final[dict[type, Callable[[Op, Mapping[str, int]], Request]]] = {
    Route: _route,
    ForeignRoute: _foreign,
    UnreachableRoute: _unreachable,
    Neighbor: _neighbor,
    FdbEntry: _fdb,
    LinkAddress: _address,
    Rule: _rule,
}


def replacement(made: Request) -> Request:
    """Return the request that puts a route in place of what is there."""
    return Request(made.kind, _MAKE_OR_CHANGE, made.body)


def removal(route: Route) -> Request:
    """Return the request that deletes an IPv6 route at ``route``'s key, whoever made it.

    ``ip -6 route del PREFIX metric 1024 table TABLE``; our own deletions name
    our protocol and so never meet another's route.
    """
    body = RTMSG.pack(AF[Family.IPV6], route.prefix.prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += attribute(RTA_DST, route.prefix.network_address.packed)
    body += attribute(RTA_PRIORITY, _U32.pack(IP6_RT_PRIO_USER))
    body += attribute(RTA_TABLE, _U32.pack(route.table))
    return Request(RTM_DELROUTE, 0, body)


def route_query(prefix: IPNetwork, host: int = 0) -> bytes:
    """Return the body of a question for the route that address ``host`` of ``prefix`` takes.

    With RTM_F_FIB_MATCH: as it stands in its table.
    """
    family = family_of(prefix)
    address = (int(prefix.network_address) + host).to_bytes(family.bits // 8, "big")
    body = RTMSG.pack(AF[family], family.bits, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    return body + attribute(RTA_DST, address)


def main_table_request() -> bytes:
    """Return the body of a dump of all IPv4 routes of the main table, whoever made them."""
    return RTMSG.pack(socket.AF_INET, 0, 0, 0, MAIN_TABLE, 0, 0, 0, 0)


def routes_request(family: Family) -> bytes:
    """Return the body of a dump of our own routes; the kernel leaves out all others."""
    return RTMSG.pack(AF[family], 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0)


def neighbors_request(family: Family, ifindex: int) -> bytes:
    """Return the body of a dump of one device's neighbors."""
    return NDMSG.pack(AF[family], 0, 0, 0, 0, 0, 0) + attribute(NDA_IFINDEX, _U32.pack(ifindex))


def fdb_request(ifindex: int) -> bytes:
    """Return the body of a dump of one device's forwarding entries."""
    return NDMSG.pack(AF_BRIDGE, 0, 0, ifindex, 0, 0, 0)


def addresses_request(ifindex: int) -> bytes:
    """Return the body of a dump of one device's addresses."""
    return IFADDRMSG.pack(0, 0, 0, 0, ifindex)


def rules_request(family: Family) -> bytes:
    """Return the body of a dump of routing rules."""
    return RULE.pack(AF[family], 0, 0, 0, 0, 0, 0, 0, 0)
