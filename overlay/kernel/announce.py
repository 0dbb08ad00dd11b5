"""Telling a segment that an address has another MAC address now.

Whoever spoke to the pod that had the address before would else send to its
MAC address until the entry ages, up to a minute.
"""

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Final

from overlay.kernel.base import KernelError
from overlay.model.address import Family, IPAddress, MacAddress, family_of

_BROADCAST: Final = b"\xff" * 6
_ALL_NODES: Final = IPv6Address("ff02::1")
_ALL_NODES_MAC: Final = bytes.fromhex("333300000001")  # RFC 2464, section 7
_ETHERTYPE: Final = {Family.IPV4: b"\x08\x06", Family.IPV6: b"\x86\xdd"}  # ARP; IPv6
_ARP_REQUEST: Final = bytes.fromhex("0001080006040001")  # Ethernet, IPv4 (RFC 826)
_ICMPV6, _NEIGHBOR_ADVERTISEMENT, _OVERRIDE = 58, 136, 0x20000000  # RFC 4861, section 4.4
_TARGET_LINK_LAYER: Final = b"\x02\x01"  # option, in units of 8 bytes


def announce(device: str, mac: MacAddress, addresses: Iterable[IPAddress]) -> None:
    """Send an announcement of each address out of ``device``. Raises KernelError."""
    packed = bytes.fromhex(mac.replace(":", ""))
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((device, 0))
            for address in addresses:
                sender.send(frame(packed, address))
    except OSError as exc:
        msg = f"{device}: announcement: {exc.strerror}"
        raise KernelError(msg) from exc


def frame(mac: bytes, address: IPAddress) -> bytes:
    """Return a gratuitous ARP request, or an unsolicited neighbor advertisement."""
    family = family_of(address)
    if family is Family.IPV4:
        body = _ARP_REQUEST + mac + address.packed + b"\0" * 6 + address.packed
        return _BROADCAST + mac + _ETHERTYPE[family] + body
    flags = struct.pack("!I", _OVERRIDE)
    message = flags + address.packed + _TARGET_LINK_LAYER + mac
    head = bytes((_NEIGHBOR_ADVERTISEMENT, 0))
    length = len(head) + 2 + len(message)
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!II", length, _ICMPV6)
    checksum = struct.pack("!H", _checksum(pseudo + head + b"\0\0" + message))
    # Hop limit 255: it came from this very link (RFC 4861, section 7.1.2).
    header = struct.pack("!IHBB", 6 << 28, length, _ICMPV6, 255)
    packet = header + address.packed + _ALL_NODES.packed + head + checksum + message
    return _ALL_NODES_MAC + mac + _ETHERTYPE[family] + packet


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
