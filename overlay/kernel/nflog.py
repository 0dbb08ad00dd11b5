"""Packets that nftables logs to a group, as they come (``log group N``).

A raw nfnetlink_log socket in the network namespace of the thread that makes
it. Sources: linux/netfilter/nfnetlink_log.h, RFC 791, 8200.
"""

import errno
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.wire import attribute, attributes, decoder, split
from overlay.model.address import IPAddress

_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 4 << 8  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIG = _SUBSYSTEM, _SUBSYSTEM | 1
_CFG_CMD, _CFG_MODE = 1, 2  # NFULA_CFG_*
_BIND: Final = 1
_COPY_PACKET: Final = 2
_PAYLOAD, _PREFIX = 9, 10  # NFULA_*
_REQUEST, _ACK, _ERROR = 1, 4, 2
_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct("=BBH")
_BUFFER: Final = 1 << 16  # bytes
_IPV6_LENGTH: Final = 40
_WITH_PORTS: Final = (6, 17, 132)  # TCP, UDP, SCTP
_FRAGMENT_OFFSET: Final = 0x1FFF


@dataclass(frozen=True, slots=True)
class LoggedPacket:
    """Who sent what to whom; ``port`` is the destination's, 0 where there is none to be read."""

    prefix: str
    source: IPAddress
    destination: IPAddress
    protocol: int
    port: int = 0


class PacketLog:
    """Listens to one group from the moment it is made. Raises KernelError.

    What comes faster than it is read is lost.
    """

    def __init__(self, group: int, snaplen: int = 128) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
            self._configure(group, attribute(_CFG_CMD, bytes([_BIND])))
            mode = struct.pack("!IBx", snaplen, _COPY_PACKET)
            self._configure(group, attribute(_CFG_MODE, mode))
        except OSError as exc:
            reason = exc.strerror or exc
            msg = f"NFLOG group {group} cannot be listened to: {reason}; is another one there?"
            raise KernelError(msg) from exc

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def wait(self, timeout_s: float) -> list[LoggedPacket]:
        """Return what was logged within ``timeout_s`` seconds. Raises KernelError."""
        self._socket.settimeout(timeout_s)
        try:
            return parse_logged(self._socket.recv(_BUFFER))
        except TimeoutError:
            return []
        except OSError as exc:
            if exc.errno == errno.ENOBUFS:  # some were lost; they are counted all the same
                return []
            msg = f"NFLOG: {exc.strerror}"
            raise KernelError(msg) from exc

    def _configure(self, group: int, body: bytes) -> None:
        size = _HEADER.size + _FAMILY.size + len(body)
        message = _HEADER.pack(size, _CONFIG, _REQUEST | _ACK, 1, 0)
        self._socket.settimeout(5.0)
        self._socket.send(message + _FAMILY.pack(0, 0, socket.htons(group)) + body)
        kind, code = struct.unpack_from("=4xH10xi", self._socket.recv(_BUFFER))
        if kind == _ERROR and code:
            raise OSError(-code, os.strerror(-code))


@decoder
def parse_logged(data: bytes) -> list[LoggedPacket]:
    """Return the packets in a datagram of the group; what is no IP packet is left out.

    Raises MessageError.
    """
    found = []
    for kind, _flags, _sequence, buffer, start, end in split(data):
        if kind != _PACKET:
            continue
        parts = attributes(buffer, start + _FAMILY.size, end)
        prefix = parts.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace")
        packet = _parse_packet(prefix, parts.get(_PAYLOAD, b""))
        if packet is not None:
            found.append(packet)
    return found


def _parse_packet(prefix: str, data: bytes) -> LoggedPacket | None:
    version = data[0] >> 4 if data else 0
    source: IPAddress
    destination: IPAddress
    if version == 4 and len(data) >= 20:
        length, protocol = (data[0] & 0xF) * 4, data[9]
        source, destination = IPv4Address(data[12:16]), IPv4Address(data[16:20])
        is_first = not int.from_bytes(data[6:8], "big") & _FRAGMENT_OFFSET
    elif version == 6 and len(data) >= _IPV6_LENGTH:
        length, protocol, is_first = _IPV6_LENGTH, data[6], True
        source, destination = IPv6Address(data[8:24]), IPv6Address(data[24:40])
    else:
        return None
    ports = data[length : length + 4]
    has_port = protocol in _WITH_PORTS and is_first and len(ports) == 4
    port = int.from_bytes(ports[2:], "big") if has_port else 0
    return LoggedPacket(prefix, source, destination, protocol, port)
