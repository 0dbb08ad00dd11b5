"""UDP sockets that learn what became of a packet: never fragmented, errors included."""

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Final

from overlay.model.address import Family, IPAddress

AF: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
# IP and UDP headers, bytes (RFC 791, RFC 8200, RFC 768).
HEADERS: Final = {Family.IPV4: 20 + 8, Family.IPV6: 40 + 8}

# linux/in.h and linux/in6.h; Python 3.11 does not name them.
_IP_MTU_DISCOVER: Final = 10
_IP_RECVERR: Final = 11
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_RECVERR: Final = 25
_PMTUDISC_PROBE: Final = 3  # set DF, and disregard what path MTU discovery learned
_OPTIONS: Final = {
    Family.IPV4: (
        (socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE),
        (socket.IPPROTO_IP, _IP_RECVERR, 1),
    ),
    Family.IPV6: (
        (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE),
        (socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1),
        (socket.IPPROTO_IPV6, _IPV6_RECVERR, 1),
    ),
}
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")  # sock_extended_err, linux/errqueue.h


@dataclass(frozen=True, slots=True)
class SocketError:
    """An error that came back for a packet; ``payload`` is what the packet held, cut short."""

    number: int  # errno
    payload: bytes


def prober(family: Family) -> socket.socket:
    """Return a non-blocking UDP socket for probes, in the thread's namespace."""
    probe = socket.socket(AF[family], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    for level, option, value in _OPTIONS[family]:
        probe.setsockopt(level, option, value)
    return probe


def connector(family: Family) -> socket.socket:
    """Return a non-blocking TCP socket, in the thread's namespace."""
    return socket.socket(AF[family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def listener(kind: socket.SocketKind, address: IPAddress, port: int) -> socket.socket:
    """Return a non-blocking server socket in the thread's namespace.

    Bound to one address, so that answers come from where the question went.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    server = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((str(address), port))
    if kind == socket.SOCK_STREAM:
        server.listen(128)
    return server


def errors(probe: socket.socket) -> list[SocketError]:
    """Return and clear the errors that came back on a probe's socket."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            payload, ancillary, _, _ = probe.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            found += [
                SocketError(_EXTENDED_ERROR.unpack_from(data)[0], payload)
                for level, kind, data in ancillary
                if (level, kind) in _ERROR_KINDS
            ]
    return found


def pending_error(any_socket: socket.socket) -> int:
    """Return and clear a socket's error, as an errno; 0 when there is none."""
    return any_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


_ERROR_KINDS: Final = frozenset(
    {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}
)
