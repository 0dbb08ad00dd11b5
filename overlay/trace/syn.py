"""A TCP SYN as a probe: made, and told from all else by its port and sequence number.

RFC 9293, section 3.1. The source port may be translated on the way; the
destination's port and the sequence number stay, and the answer acknowledges it.
"""

import struct
from typing import Final, Literal

from overlay.model.address import Family
from overlay.policy.verdict import Packet

_HEADER: Final = struct.Struct("!HHIIBBHHH")  # ports, numbers, length, flags, window, sum, urgent
_SYN, _RST = 0x02, 0x04
_FIRST_PORT: Final = 32768
_WINDOW: Final = 64240  # bytes, as Linux offers at first


def sequence(token: bytes) -> int:
    """Return the sequence number of the SYN that ``token`` makes."""
    return int.from_bytes(token[:4], "big")


def syn(packet: Packet, port: int, token: bytes) -> bytes:
    """Return the segment, its checksum included, to ``port`` of the packet's destination."""
    own = _FIRST_PORT + int.from_bytes(token[4:6], "big") % 28000
    fields = (own, port, sequence(token), 0, _HEADER.size // 4 << 4, _SYN, _WINDOW)
    bare = _HEADER.pack(*fields, 0, 0)
    ends = packet.source.packed + packet.destination.packed
    form = "!HH" if packet.family is Family.IPV4 else "!II"  # RFC 8200, section 8.1
    lengths = (6, len(bare)) if packet.family is Family.IPV4 else (len(bare), 6)
    words = ends + struct.pack(form, *lengths) + bare
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    return _HEADER.pack(*fields, ~(total + (total >> 16)) & 0xFFFF, 0)


def find(frame: bytes, port: int, token: bytes) -> tuple[Literal["probe", "answer", "reset"], int]:
    """Return what of the exchange is in ``frame``, and where its TCP header begins.

    The place is -1 where there is nothing of it.
    """
    at = frame.find(struct.pack("!HI", port, sequence(token)))
    if at >= 2:
        return "probe", at - 2
    at = frame.find(struct.pack("!I", (sequence(token) + 1) & 0xFFFFFFFF))
    start = at - 8
    if start < 0 or len(frame) < start + 14 or frame[start : start + 2] != port.to_bytes(2, "big"):
        return "answer", -1
    return ("reset" if frame[start + 13] & _RST else "answer"), start
