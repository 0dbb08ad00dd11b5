"""Which notices only repeat what we wrote ourselves, told by their bytes before any is decoded.

Most notices carry the port of the socket that asked. Those of forwarding
entries carry none (``vxlan_fdb_notify`` in drivers/net/vxlan), nor do those of
neighbors that are gone (``neigh_cleanup_and_release`` in net/core/neighbour.c):
they are compared with what was written last for that MAC or address. A notice
that says just that tells nothing, whoever caused it.
"""

import struct
from collections.abc import Iterable
from typing import Final

from overlay.kernel.rtnetlink import AF_BRIDGE

_NEWNEIGH, _DELNEIGH = 28, 29  # linux/rtnetlink.h
_HEADER: Final = 16  # bytes of struct nlmsghdr, linux/netlink.h
_LENGTH: Final = struct.Struct("=I")
_KIND: Final = slice(4, 6)
_PORT: Final = slice(12, 16)
_SET, _GONE = (struct.pack("=H", kind) for kind in (_NEWNEIGH, _DELNEIGH))
_FAMILY_AND_INDEX, _STATE, _ATTRIBUTES = slice(0, 8), slice(8, 10), 12  # struct ndmsg
_KINDS: Final = frozenset({_SET, _GONE})
_LEAST: Final = 16  # bytes of a body: up to the head of the first attribute
_AGES: Final = struct.pack("=HH", 20, 3)  # NDA_CACHEINFO, with which the kernel ends
_AGES_BYTES: Final = 20


class Echoes:
    """What one socket wrote lately; port 0 is none. Its owner's thread writes, one other reads."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._port = struct.pack("=I", port)
        self._entries: dict[bytes, bytes | None] = {}  # by place; None: deleted

    def expect(self, requests: Iterable[tuple[int, bytes]]) -> None:
        """Note what is about to be written; requests are types and bodies."""
        for kind, body in requests:
            if kind == _DELNEIGH:
                self._entries[_place(body)[0]] = None
            elif kind == _NEWNEIGH and body[0] == AF_BRIDGE:
                place, rest = _place(body)
                self._entries[place] = body[_STATE] + body[rest:]

    def forget(self) -> None:
        """Expect nothing any more: what was not told by now was nothing new to the kernel."""
        self._entries.clear()

    def takes(self, data: bytes) -> bool:
        """Return whether a datagram is one message that only repeats what was written.

        False for all that is not surely so, however damaged it is.
        """
        if len(data) < _HEADER or _LENGTH.unpack_from(data)[0] != len(data):
            return False
        if data[_PORT] == self._port:
            return self.port != 0
        if not self._entries:
            return False
        kind, body = data[_KIND], data[_HEADER:]
        if kind not in _KINDS or len(body) < _LEAST:
            return False
        place, rest = _place(body)
        written = self._entries.get(place, b"")
        if kind == _GONE and written is None:
            self._entries.pop(place, None)
            return True
        ages = len(body) - _AGES_BYTES
        if kind != _SET or not written or body[ages : ages + 4] != _AGES:
            return False
        if body[_STATE] + body[rest:ages] != written:
            return False
        self._entries.pop(place, None)
        return True


def _place(body: bytes) -> tuple[bytes, int]:
    """Return what a neighbor or forwarding entry is known by, and where the rest begins.

    Family, device and the first attribute: we and the kernel begin with an
    entry's MAC (NDA_LLADDR), and with a neighbor's address (NDA_DST).
    """
    length = body[_ATTRIBUTES]
    rest = _ATTRIBUTES + length + (-length % 4)
    return body[_FAMILY_AND_INDEX] + body[_ATTRIBUTES:rest], rest
