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
from overlay.trace.syn import syn

TOKEN_BYTES: Final = 16
_ECHO: Final = {Family.IPV4: 8, Family.IPV6: 128}  # RFC 792, RFC 4443
_FAMILY: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_DISCARD: Final = 9  # RFC 863: the port of a datagram that asked for none


def send_probe(packet: Packet, token: bytes, sandbox: str = "") -> None:
    """Send ``token`` as ``packet`` says: in a UDP datagram, an ICMP echo request, or a TCP SYN.

    A SYN has it in its source port and sequence number (``trace.syn``); nobody
    waits for its answer, which the sender's kernel resets. From the network
    namespace ``sandbox``, the calling thread's own where it is empty. Raises
    KernelError.
    """
    kind, protocol, payload, port = _form(packet, token)
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


def _form(packet: Packet, token: bytes) -> tuple[int, int, bytes, int]:
    """Return the socket's kind and protocol, what is sent, and to which port of it."""
    if packet.protocol == "udp":
        return socket.SOCK_DGRAM, socket.IPPROTO_UDP, token, packet.port or _DISCARD
    if packet.protocol == "tcp" and packet.port is not None:
        return socket.SOCK_RAW, socket.IPPROTO_TCP, syn(packet, packet.port, token), 0
    is_v4 = packet.family is Family.IPV4
    icmp = socket.IPPROTO_ICMP if is_v4 else socket.IPPROTO_ICMPV6
    return socket.SOCK_RAW, icmp, _echo(packet.family, token), 0


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
