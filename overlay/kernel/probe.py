"""One tagged packet out of a pod, or out of this node."""

import os
import socket
import struct
from contextlib import closing
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.netns import open_socket
from overlay.model.address import Family
from overlay.policy.verdict import Packet

TOKEN_BYTES: Final = 16
_ECHO: Final = {Family.IPV4: 8, Family.IPV6: 128}  # RFC 792, RFC 4443
_FAMILY: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_DISCARD: Final = 9  # RFC 863: the port of a datagram that asked for none


def send_probe(packet: Packet, token: bytes, sandbox: str = "") -> None:
    """Send ``token`` as ``packet`` says: in a UDP datagram, else in an ICMP echo request.

    From the network namespace ``sandbox``, the calling thread's own where it
    is empty. Raises KernelError.
    """
    is_udp = packet.protocol == "udp"
    kind = socket.SOCK_DGRAM if is_udp else socket.SOCK_RAW
    icmp = socket.IPPROTO_ICMP if packet.family is Family.IPV4 else socket.IPPROTO_ICMPV6
    protocol = socket.IPPROTO_UDP if is_udp else icmp
    payload = token if is_udp else _echo(packet.family, token)
    port = packet.port or _DISCARD if is_udp else 0
    try:
        if sandbox:
            descriptor = os.open(sandbox, os.O_RDONLY | os.O_CLOEXEC)
            try:
                sender = open_socket(descriptor, _FAMILY[packet.family], kind, protocol)
            finally:
                os.close(descriptor)
        else:
            sender = socket.socket(_FAMILY[packet.family], kind, protocol)
        with closing(sender):
            sender.bind((str(packet.source), 0))
            sender.sendto(payload, (str(packet.destination), port))
    except OSError as exc:
        msg = f"the probe cannot be sent from {packet.source}: {exc.strerror or exc}"
        raise KernelError(msg) from exc


def _echo(family: Family, token: bytes) -> bytes:
    """Return an echo request; the kernel itself computes the checksum of ICMPv6."""
    kind = _ECHO[family]
    head = struct.pack("!BBHHH", kind, 0, 0, int.from_bytes(token[:2], "big"), 1)
    if family is Family.IPV6:
        return head + token
    words = struct.unpack(f"!{(len(head) + len(token)) // 2}H", head + token)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return head[:2] + struct.pack("!H", checksum) + head[4:] + token
