"""Netlink messages packed by hand: the least that must be sent for a peer, and nothing of ours.

Sources: linux/rtnetlink.h, linux/neighbour.h, linux/nexthop.h, linux/lwtunnel.h. IPv4.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

_CREATE: Final = 0x1 | 0x400  # NLM_F_REQUEST, NLM_F_CREATE
_ACK: Final = 0x4
_NEWROUTE, _NEWNEIGH, _NEWNEXTHOP = 24, 28, 104
_MAIN, _UNICAST, _ONLINK, _PROTOCOL = 254, 1, 4, 99
_PERMANENT, _SELF, _BRIDGE = 0x80, 0x02, 7
_ENCAP_IP: Final = 2
_NESTED: Final = 1 << 15
BUCKETS: Final = 1024  # metrics that keep the kernel's hash of next hops short
_BUFFER: Final = 1 << 16  # bytes of a send
_HEADER: Final = struct.Struct("=IHHII")
_ERROR: Final = struct.Struct("=IHHIIi")
_NLMSG_ERROR: Final = 2


def route(
    network: int,
    length: int,
    *,
    index: int = 0,
    gateway: int | None = None,
    nexthop: int | None = None,
    metric: int = 0,
) -> bytes:
    """``ip route add NETWORK/LENGTH via GATEWAY dev INDEX onlink``, or ``nhid NEXTHOP``.

    With a ``metric``, which spreads them in the kernel (docs/decisions/0012), or 0.
    """
    flags = _ONLINK if gateway is not None else 0
    body = struct.pack("=BBBBBBBBI", 2, length, 0, 0, _MAIN, _PROTOCOL, 0, _UNICAST, flags)
    body += _address(1, network)
    if nexthop is not None:
        body += _u32(30, nexthop)
    if gateway is not None:
        body += _u32(4, index) + _address(5, gateway)
    if metric:
        body += _u32(6, metric)
    return _message(_NEWROUTE, body)


def neighbor(address: int, mac: bytes, index: int) -> bytes:
    """``ip neigh add ADDRESS lladdr MAC dev INDEX nud permanent``."""
    body = struct.pack("=BBHiHBB", 2, 0, 0, index, _PERMANENT, 0, 0)
    return _message(_NEWNEIGH, body + _address(1, address) + _attribute(2, mac))


def forwarding(mac: bytes, target: int, index: int) -> bytes:
    """``bridge fdb add MAC dev INDEX dst TARGET self permanent``."""
    body = struct.pack("=BBHiHBB", _BRIDGE, 0, 0, index, _PERMANENT, _SELF, 0)
    return _message(_NEWNEIGH, body + _attribute(2, mac) + _address(1, target))


def nexthop(number: int, gateway: int, index: int, tunnel: tuple[int, int] | None = None) -> bytes:
    """``ip nexthop add id NUMBER via GATEWAY dev INDEX onlink [encap ip id VNI dst TARGET]``."""
    body = struct.pack("=BBBBI", 2, 0, _PROTOCOL, 0, _ONLINK)
    body += _u32(1, number) + _u32(5, index) + _address(6, gateway)
    if tunnel is not None:
        vni, target = tunnel
        inner = _attribute(1, vni.to_bytes(8, "big")) + _address(2, target)
        body += _attribute(7, struct.pack("=H", _ENCAP_IP)) + _attribute(_NESTED | 8, inner)
    return _message(_NEWNEXTHOP, body)


def deletion(message: bytes) -> bytes:
    """Return the message that deletes what ``message`` adds."""
    length, kind, _, number, port = _HEADER.unpack_from(message)
    return _HEADER.pack(length, kind + 1, 1, number, port) + message[_HEADER.size :]


def send(messages: Iterable[bytes]) -> None:
    """Send to the kernel of the thread's namespace; the last of each buffer is acknowledged.

    Raises OSError for the first that is refused.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.bind((0, 0))
        for buffer in _buffers(messages):
            kernel.send(buffer)
            _await(kernel)


def _buffers(messages: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    for message in messages:
        if size + len(message) > _BUFFER:
            yield _acknowledged(parts)
            parts, size = [], 0
        parts.append(message)
        size += len(message)
    if parts:
        yield _acknowledged(parts)


def _acknowledged(parts: list[bytes]) -> bytes:
    length, kind, flags, number, port = _HEADER.unpack_from(parts[-1])
    parts[-1] = _HEADER.pack(length, kind, flags | _ACK, number, port) + parts[-1][_HEADER.size :]
    return b"".join(parts)


def _await(kernel: socket.socket) -> None:
    """Read until the acknowledgment; an error before it is another message's."""
    while True:
        data = kernel.recv(_BUFFER)
        _, kind, _, _, _, number = _ERROR.unpack_from(data)
        if kind == _NLMSG_ERROR and number:
            raise OSError(-number, os.strerror(-number))
        if kind == _NLMSG_ERROR:
            return


def _message(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _CREATE, 0, 0) + body


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _address(kind: int, address: int) -> bytes:
    return _attribute(kind, address.to_bytes(4, "big"))


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))
