"""A capture file as tcpdump and Wireshark read it, with nanoseconds.

Source: pcap-savefile(5); LINKTYPE_ETHERNET.
"""

import struct
from typing import Final

_MAGIC_NANOSECONDS: Final = 0xA1B23C4D
_LINKTYPE_ETHERNET: Final = 1
_SNAPLEN: Final = 0x40000  # bytes
_FILE: Final = struct.Struct("=IHHiIII")
_RECORD: Final = struct.Struct("=IIII")


def file_header() -> bytes:
    """Return what a file begins with."""
    return _FILE.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, _SNAPLEN, _LINKTYPE_ETHERNET)


def record(data: bytes, length: int, seconds: int, nanoseconds: int) -> bytes:
    """Return one frame's record; ``length`` is what it had on the wire, in bytes."""
    return _RECORD.pack(seconds, nanoseconds, len(data), length) + data
