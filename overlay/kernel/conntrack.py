"""The kernel's table of connections: listed, and entries marked or deleted one by one.

``conntrack -L``, ``-U`` and ``-D`` by raw netlink, in the network namespace
of the calling thread. Sources: linux/netfilter/nfnetlink_conntrack.h.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.wire import attribute, attributes, decoder, split
from overlay.model.address import IPAddress

_NETLINK_NETFILTER: Final = 12
_CT: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_CT_NEW, _CT_GET, _CT_DELETE = _CT | 0, _CT | 1, _CT | 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_NESTED: Final = 0x8000
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_MARK, _CTA_ID, _CTA_MARK_MASK = 1, 2, 8, 12, 21
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_IP = ((1, 2), (3, 4))  # source and destination, IPv4 and IPv6
_CTA_PROTO_NUM, _CTA_PROTO_SRC_PORT, _CTA_PROTO_DST_PORT = 1, 2, 3
_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct("=BBH")
_TIMEOUT_S: Final = 10.0
_BUFFER: Final = 1 << 18  # bytes


@dataclass(frozen=True, slots=True)
class Endpoints:
    """One direction of a connection; ports are 0 for protocols without."""

    source: IPAddress
    destination: IPAddress
    source_port: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class Connection:
    """One entry: who began it with whom, and who answers whom, after translation of addresses.

    ``protocol`` is IP's number. ``key`` is what deletes it and nothing else.
    ``mark`` is shared with whoever else marks connections, bit by bit.
    """

    protocol: int
    original: Endpoints
    reply: Endpoints
    key: bytes
    mark: int = 0


def connections(about: Collection[IPAddress]) -> list[Connection]:
    """Return the connections with any of these addresses at an end. Raises KernelError.

    The kernel is asked for all of them; what is about others is not taken apart.
    """
    packed = [address.packed for address in about]
    found: list[Connection] = []
    with _opened() as channel:
        channel.send(_message(_CT_GET, _REQUEST | _DUMP, socket.AF_UNSPEC, b""))
        for data, start, end in _answers(channel):
            body = data[start:end]
            if any(each in body for each in packed):
                entry = parse_connection(data, start, end)
                if entry is not None:
                    found.append(entry)
    return [each for each in found if _ends(each) & frozenset(about)]


def cut(entries: Collection[Connection]) -> int:
    """Delete entries; return how many were there. Raises KernelError."""
    return _each(_CT_DELETE, entries, b"", "deleted")


def mark(entries: Collection[Connection], bit: int, *, is_set: bool) -> int:
    """Set a bit of the entries' marks, or take it away; return how many are there.

    Other bits stay. ``conntrack -U --mark BIT/BIT``. Raises KernelError.
    """
    value = struct.pack("!I", bit if is_set else 0)
    body = attribute(_CTA_MARK, value) + attribute(_CTA_MARK_MASK, struct.pack("!I", bit))
    return _each(_CT_NEW, entries, body, "marked")


def _each(kind: int, entries: Collection[Connection], body: bytes, done: str) -> int:
    count = 0
    with _opened() as channel:
        for entry in entries:
            family = socket.AF_INET if entry.original.source.version == 4 else socket.AF_INET6
            channel.send(_message(kind, _REQUEST | _ACK, family, entry.key + body))
            code = _acknowledged(channel)
            if code not in {0, errno.ENOENT}:
                msg = f"conntrack: an entry cannot be {done}: {os.strerror(code)}"
                raise KernelError(msg)
            count += code == 0
    return count


@decoder
def parse_connection(data: bytes, start: int, end: int) -> Connection | None:
    """Return the entry in a message's body, None for one without addresses. Raises MessageError."""
    parts = attributes(data, start + _FAMILY.size, end)
    original, reply = parts.get(_CTA_TUPLE_ORIG), parts.get(_CTA_TUPLE_REPLY)
    if original is None or reply is None:
        return None
    protocol, one = _endpoints(original)
    _, other = _endpoints(reply)
    key = attribute(_CTA_TUPLE_ORIG | _NESTED, original)
    if _CTA_ID in parts:  # of two with one tuple, after the first one went, only this
        key += attribute(_CTA_ID, parts[_CTA_ID])
    mark = int.from_bytes(parts.get(_CTA_MARK, b""), "big")
    return Connection(protocol, one, other, key, mark)


def _endpoints(data: bytes) -> tuple[int, Endpoints]:
    parts = attributes(data, 0, len(data))
    addresses = parts.get(_CTA_TUPLE_IP, b"")
    ip = attributes(addresses, 0, len(addresses))
    ends = next(((ip[a], ip[b]) for a, b in _CTA_IP if a in ip and b in ip), (b"", b""))
    described = parts.get(_CTA_TUPLE_PROTO, b"")
    proto = attributes(described, 0, len(described))
    ports = (
        int.from_bytes(proto.get(kind, b""), "big")
        for kind in (_CTA_PROTO_SRC_PORT, _CTA_PROTO_DST_PORT)
    )
    source, destination = (_address(each) for each in ends)
    return proto.get(_CTA_PROTO_NUM, b"\0")[0], Endpoints(source, destination, *ports)


def _address(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _ends(entry: Connection) -> frozenset[IPAddress]:
    one, other = entry.original, entry.reply
    return frozenset({one.source, one.destination, other.source, other.destination})


@contextlib.contextmanager
def _opened() -> Iterator[socket.socket]:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    try:
        with socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER) as channel:
            channel.settimeout(_TIMEOUT_S)
            yield channel
    except OSError as exc:
        msg = f"conntrack cannot be asked: {exc.strerror or exc}"
        raise KernelError(msg) from exc


def _message(kind: int, flags: int, family: int, body: bytes) -> bytes:
    size = _HEADER.size + _FAMILY.size + len(body)
    return _HEADER.pack(size, kind, flags, 1, 0) + _FAMILY.pack(family, 0, 0) + body


def _answers(channel: socket.socket) -> Iterator[tuple[bytes, int, int]]:
    while True:
        data = channel.recv(_BUFFER)
        for kind, _flags, _sequence, buffer, start, end in split(data):
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", buffer, start)[0]
                msg = f"conntrack cannot be listed: {os.strerror(code)}"
                raise KernelError(msg)
            yield buffer, start, end


def _acknowledged(channel: socket.socket) -> int:
    while True:
        for kind, _flags, _sequence, buffer, start, _end in split(channel.recv(_BUFFER)):
            if kind == _ERROR:
                return -int(struct.unpack_from("=i", buffer, start)[0])
