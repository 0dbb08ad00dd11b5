"""Dumps read plainly, attribute by attribute: what ``parse`` must say."""

import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address

from overlay.kernel.wire import Message, attributes, decoder, head
from overlay.model.address import IPNetwork, MacAddress
from overlay.model.kernel import ROUTE_PROTOCOL, FdbEntry, Neighbor, Route, UnreachableRoute

_RTMSG, _NDMSG = struct.Struct("=BBBBBBBBI"), struct.Struct("=BBHiHBB")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_OTHERS = {7: "src", 8: "metrics", 9: "nexthops", 16: "mark", 22: "encap", 30: "nhid"}


@decoder
def routes(message: Message, names: Mapping[int, str]) -> list[Route | UnreachableRoute]:
    family, length, _s, _t, table, protocol, _sc, kind, flags = head(_RTMSG, *message)
    if protocol != ROUTE_PROTOCOL:
        return []
    parts = _attributes(message, numbers={4, 6, 15})
    if family not in _FAMILIES:
        return []
    metric = _number(parts, 6)
    if kind == 7 and metric == 20310:
        return [UnreachableRoute(_network(family, parts.get(1), length))]
    number, gateway = _number(parts, 4), parts.get(5)
    return [
        Route(
            prefix=_network(family, parts.get(1), length),
            device=names.get(number, f"#{number}") if kind == 1 else f"type {kind}",
            gateway=ip_address(gateway) if gateway is not None else None,
            onlink=bool(flags & 4),
            table=_number(parts, 15) or table,
            metric=0 if family == socket.AF_INET6 and metric == 1024 else metric,
            others=" ".join(word for each, word in _OTHERS.items() if each in parts),
        )
    ]


@decoder
def neighbors(message: Message, device: str, ifindex: int) -> list[Neighbor]:
    family, _p, _q, index, state, _flags, _type = head(_NDMSG, *message)
    parts = _attributes(message, numbers=set())
    address, mac = parts.get(1), parts.get(2)
    if index != ifindex or state != 0x80 or family not in _FAMILIES:
        return []
    if address is None or mac is None or len(mac) != 6:
        return []
    return [Neighbor(device, ip_address(address), MacAddress(mac.hex(":")))]


@decoder
def fdb(message: Message, device: str, ifindex: int) -> list[FdbEntry]:
    _family, _p, _q, index, state, _flags, _type = head(_NDMSG, *message)
    parts = _attributes(message, numbers={7, 8})
    mac, destination = parts.get(2), parts.get(1, bytes(4) if 13 in parts else None)
    if index != ifindex or mac is None or destination is None:
        return []
    if len(mac) != 6:
        msg = f"MAC address of {len(mac)} bytes"
        raise ValueError(msg)
    return [
        FdbEntry(
            device,
            MacAddress(mac.hex(":")),
            ip_address(destination),
            port=int.from_bytes(parts.get(6, b""), "big"),
            vni=_number(parts, 7),
            via=_number(parts, 8),
            is_lasting=bool(state & 0xC0),
        )
    ]


def _attributes(message: Message, numbers: set[int]) -> dict[int, bytes]:
    data, start, end = message
    found = attributes(data, start + 12, end)
    at = start + 12
    while at + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, at)
        if kind & 0x3FFF in numbers and length != 8:
            msg = f"attribute {kind} of {length} bytes"
            raise ValueError(msg)
        at += length + (-length % 4)
    return found


def _number(parts: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(parts.get(kind, b""), "little")


def _network(family: int, packed: bytes | None, length: int) -> IPNetwork:
    if family == socket.AF_INET:
        return IPv4Network((packed or bytes(4), length))
    return IPv6Network((packed or bytes(16), length))
