"""Rtnetlink's answers and notices as kernel objects. What cannot be read raises MessageError."""

import socket
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Final, TypeAlias

from overlay.kernel.layout import U32, Layout
from overlay.kernel.messages import AF
from overlay.kernel.rtnetlink import (
    FRA_PRIORITY,
    FRA_PROTOCOL,
    FRA_SRC,
    FRA_TABLE,
    IFA_ADDRESS,
    IFA_LOCAL,
    IFADDRMSG,
    IP6_RT_PRIO_USER,
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDA_NH_ID,
    NDA_PORT,
    NDA_VNI,
    NDMSG,
    NUD_NOARP,
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
from overlay.kernel.wire import Message, decoder
from overlay.model.address import (
    Family,
    IPAddress,
    IPNetwork,
    MacAddress,
    host_network,
    network_at,
)
from overlay.model.kernel import (
    MAIN_TABLE,
    POD_ROUTE_PROTOCOL,
    ROUTE_PROTOCOL,
    UNREACHABLE_METRIC,
    FdbEntry,
    ForeignRoute,
    LinkAddress,
    Neighbor,
    Route,
    Rule,
    UnreachableRoute,
)

Messages: TypeAlias = Iterable[Message]

_OURS: Final = frozenset({ROUTE_PROTOCOL, POD_ROUTE_PROTOCOL})
_FAMILY: Final[Mapping[int, Family]] = {int(number): family for family, number in AF.items()}
_MAC_BYTES: Final = 6
_BITS: Final = {int(number): family.bits for family, number in AF.items()}
# Attributes of routes that ours never have (linux/rtnetlink.h).
_OTHERS: Final = (
    (7, "src"),
    (8, "metrics"),
    (9, "nexthops"),
    (16, "mark"),
    (22, "encap"),
    (30, "nhid"),
)


_ROUTE: Final = Layout(
    RTMSG,
    {RTA_DST: "", RTA_OIF: U32, RTA_GATEWAY: "", RTA_PRIORITY: U32, RTA_TABLE: U32},
    _OTHERS,
)
_NEIGHBOR: Final = Layout(NDMSG, {NDA_DST: "", NDA_LLADDR: ""})
_FDB: Final = Layout(
    NDMSG,
    {NDA_DST: "", NDA_LLADDR: "", NDA_PORT: "", NDA_VNI: U32, NDA_IFINDEX: U32, NDA_NH_ID: ""},
)
_ADDRESS: Final = Layout(IFADDRMSG, {IFA_ADDRESS: "", IFA_LOCAL: ""})
_RULE: Final = Layout(RULE, {FRA_SRC: "", FRA_PRIORITY: U32, FRA_TABLE: U32, FRA_PROTOCOL: ""})
_PROTOCOL_AT: Final = 5  # in struct rtmsg
_ANYWHERE: Final = b"\0" * 4  # what an entry that leads to a nexthop object has as destination


@decoder
def routes(messages: Messages, names: Mapping[int, str]) -> list[Route | UnreachableRoute]:
    """Return our routes. One on a device that ``names`` lacks gets the device ``#INDEX``."""
    found: list[Route | UnreachableRoute] = []
    read = _ROUTE.read
    for data, start, end in messages:
        if end - start >= RTMSG.size and data[start + _PROTOCOL_AT] != ROUTE_PROTOCOL:
            continue
        fixed, (target, number, gateway, metric, big_table, others) = read(data, start, end)
        family, length, _s, _t, table, _p, _sc, kind, flags = fixed
        if family not in _FAMILY:
            continue
        prefix = _network(family, target, length)
        if kind == RTN_UNREACHABLE and metric == UNREACHABLE_METRIC:
            found.append(UnreachableRoute(prefix))
            continue
        # A route of another kind (a blackhole, say) is no route of ours to keep.
        found.append(
            Route(
                prefix,
                _device(number or 0, names) if kind == RTN_UNICAST else f"type {kind}",
                None if gateway is None else _parse(gateway),
                flags & RTNH_F_ONLINK != 0,
                big_table or table,
                0 if metric == IP6_RT_PRIO_USER and family != socket.AF_INET else metric or 0,
                others,
            )
        )
    return found


@decoder
def foreign_route(
    data: bytes, start: int, end: int, names: Mapping[int, str]
) -> ForeignRoute | None:
    """Return an IPv4 route of the main table; None for ours, for pods', and for another table's.

    So it is with one for a type of service: such packets alone take it.
    """
    fixed, (target, number, _gateway, metric, _big, _others) = _ROUTE.read(data, start, end)
    family, length, _s, tos, table, protocol, _sc, kind, _flags = fixed
    if protocol in _OURS or table != MAIN_TABLE or family != socket.AF_INET or tos:
        return None
    device = _device(number or 0, names) if kind == RTN_UNICAST else f"type {kind}"
    return ForeignRoute(_network(family, target, length), metric or 0, protocol, device)


@decoder
def route_maker(message: Message) -> tuple[int, int]:
    """Return the protocol number and the interface index of a route."""
    fixed, (_target, number, *_rest) = _ROUTE.read(*message)
    return fixed[_PROTOCOL_AT], number or 0


@decoder
def route_place(data: bytes, start: int, end: int) -> tuple[IPNetwork, int, int]:
    """Return prefix, table and metric of any route."""
    fixed, (target, _number, _gateway, metric, big_table, _) = _ROUTE.read(data, start, end)
    family, length, _s, _t, table, *_rest = fixed
    return _network(family, target, length), big_table or table, metric or 0


@decoder
def route_way(data: bytes, start: int, end: int) -> tuple[IPNetwork, IPAddress | None]:
    """Return prefix and gateway of any route."""
    (family, length, *_rest), (target, _number, gateway, *_more) = _ROUTE.read(data, start, end)
    return _network(family, target, length), None if gateway is None else _parse(gateway)


@decoder
def neighbor_address(data: bytes, start: int, end: int) -> IPAddress | None:
    """Return whose neighbor a message is about, whatever its state."""
    _fixed, (packed, *_rest) = _NEIGHBOR.read(data, start, end)
    return _parse(packed) if packed is not None and len(packed) in {4, 16} else None


@decoder
def neighbors(messages: Messages, device: str, ifindex: int) -> list[Neighbor]:
    """Return a device's permanent neighbors; the kernel's own passing ones are left out."""
    found: list[Neighbor] = []
    read = _NEIGHBOR.read
    for data, start, end in messages:
        (family, _p, _q, index, state, *_), (address, mac, _) = read(data, start, end)
        if index != ifindex or state != NUD_PERMANENT or family not in _FAMILY:
            continue
        # Other kinds of devices have other link addresses: InfiniBand 20 bytes.
        if address is not None and mac is not None and len(mac) == _MAC_BYTES:
            found.append(Neighbor(device, _parse(address), MacAddress(mac.hex(":"))))
    return found


@decoder
def fdb(messages: Messages, device: str, ifindex: int) -> list[FdbEntry]:
    """Return a device's forwarding entries; of several destinations of one MAC, each."""
    found: list[FdbEntry] = []
    read = _FDB.read
    for data, start, end in messages:
        fixed, (destination, mac, port, vni, via, nexthop, _) = read(data, start, end)
        _family, _p, _q, index, state, _flags, _type = fixed
        if destination is None and nexthop is not None:
            destination = _ANYWHERE
        if index != ifindex or mac is None or destination is None:
            continue
        found.append(
            FdbEntry(
                device,
                _mac(mac),
                _parse(destination),
                int.from_bytes(port, "big") if port else 0,
                vni or 0,
                via or 0,
                state & (NUD_PERMANENT | NUD_NOARP) != 0,
            )
        )
    return found


@decoder
def addresses(messages: Messages, device: str, ifindex: int) -> list[LinkAddress]:
    """Return a device's addresses, link-local ones left out: the kernel makes those."""
    found: list[LinkAddress] = []
    for message in messages:
        (_family, length, _flags, _scope, index), (far, local, _) = _ADDRESS.read(*message)
        packed = local or far
        if index != ifindex or packed is None:
            continue
        address = _parse(packed)
        if not address.is_link_local:
            found.append(LinkAddress(device, ip_interface((address, length))))
    return found


@decoder
def rules(messages: Messages) -> list[Rule]:
    """Return the rules that carry our protocol number."""
    found: list[Rule] = []
    for message in messages:
        (family, _d, length, _tos, table, *_), attributes = _RULE.read(*message)
        source, priority, big_table, maker, _ = attributes
        if maker == bytes((ROUTE_PROTOCOL,)) and family in _FAMILY:
            found.append(Rule(_network(family, source, length), big_table or table, priority or 0))
    return found


def _device(number: int, names: Mapping[int, str]) -> str:
    return names.get(number) or f"#{number}"


def _parse(packed: bytes) -> IPAddress:
    # From an integer: twice as fast as from bytes (2026-11, CPython 3.11).
    number = int.from_bytes(packed, "big")
    if len(packed) == 4:
        return IPv4Address(number)
    if len(packed) == 16:
        return IPv6Address(number)
    msg = f"address of {len(packed)} bytes"
    raise ValueError(msg)


def _network(family: int, packed: bytes | None, length: int) -> IPNetwork:
    bits = _BITS.get(family, 0)
    if packed and len(packed) * 8 != bits:
        msg = f"address of {len(packed)} bytes, of family {family}"
        raise ValueError(msg)
    number = int.from_bytes(packed, "big") if packed else 0
    if family == socket.AF_INET:
        v4 = IPv4Address(number)
        return host_network(v4) if length == bits else network_at(v4, length)
    v6 = IPv6Address(number)
    return host_network(v6) if length == bits else network_at(v6, length)


def _mac(packed: bytes) -> MacAddress:
    if len(packed) != _MAC_BYTES:
        msg = f"MAC address of {len(packed)} bytes"
        raise ValueError(msg)
    return MacAddress(packed.hex(":"))
