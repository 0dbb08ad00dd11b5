"""A ring of packets that the kernel fills and we read: bounded, and what did not fit is counted.

``PACKET_RX_RING`` with TPACKET_V3 (Documentation/networking/packet_mmap.rst,
linux/if_packet.h). Frames of any length lie in blocks; a block is handed over
when it is full or old. A reader that is slow loses packets, not memory.
"""

import mmap
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from overlay.kernel.base import KernelError
from overlay.kernel.taps import packet_socket

_SOL_PACKET: Final = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V3: Final = 2
_BLOCK: Final = 1 << 18  # bytes
_BLOCKS: Final = 16
_FRAME: Final = 1 << 11  # bytes; only a lower bound in this version
_OLD_MS: Final = 60  # a block that is not full is handed over then
_REQUEST: Final = struct.Struct("=7I")  # tpacket_req3
_BLOCK_HEAD: Final = struct.Struct("=8xIII")  # status, packets, offset of the first
_PACKET_HEAD: Final = struct.Struct("=IIIIIIH")  # next, seconds, nanoseconds, kept, length, _, mac
_LINK_ADDRESS: Final = 48  # sockaddr_ll behind tpacket3_hdr
_TYPE_AT: Final = _LINK_ADDRESS + 10  # sll_pkttype
_TP_STATUS_USER: Final = 1
_PACKET_OUTGOING: Final = 4
_STATISTICS: Final = struct.Struct("=III")  # tpacket_stats_v3


@dataclass(frozen=True, slots=True)
class Captured:
    """One frame. ``length`` is what it had on the wire; ``seconds`` is the kernel's clock."""

    data: bytes
    length: int
    seconds: int
    nanoseconds: int
    is_outgoing: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """What the filter let through, and what of it the ring had no room for."""

    packets: int
    dropped: int


class Ring:
    """A ring on one device, behind a classic BPF program. Raises KernelError."""

    def __init__(self, device: str, program: bytes, blocks: int = _BLOCKS) -> None:
        self._blocks = blocks
        self._next = 0
        self._packets = self._dropped = 0
        self._socket = packet_socket(device, program, prepare=self._prepare)

    def _prepare(self, tap: socket.socket) -> None:
        tap.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        frames = _BLOCK // _FRAME * self._blocks
        size = _BLOCK * self._blocks
        request = _REQUEST.pack(_BLOCK, self._blocks, _FRAME, frames, _OLD_MS, 0, 0)
        tap.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        self._memory = mmap.mmap(tap.fileno(), size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()
        self._socket.close()

    def read(self, timeout_s: float) -> Iterator[Captured]:
        """Yield the frames of one block; none when there is no block within ``timeout_s``."""
        start = self._next * _BLOCK
        if not self._status(start) & _TP_STATUS_USER:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | select.POLLERR)
            if not poll.poll(timeout_s * 1000) or not self._status(start) & _TP_STATUS_USER:
                return
        _status, count, offset = _BLOCK_HEAD.unpack_from(self._memory, start)
        try:
            at = start + offset
            for _ in range(count):
                step, seconds, nanoseconds, kept, length, _flags, mac = _PACKET_HEAD.unpack_from(
                    self._memory, at
                )
                data = bytes(self._memory[at + mac : at + mac + kept])
                is_outgoing = self._memory[at + _TYPE_AT] == _PACKET_OUTGOING
                yield Captured(data, length, seconds, nanoseconds, is_outgoing)
                at += step
        finally:
            # Given back to the kernel, also by a reader that stops in the middle.
            struct.pack_into("=I", self._memory, start + 8, 0)
            self._next = (self._next + 1) % self._blocks

    def counts(self) -> Counts:
        """Return the counts since the ring was made. Raises KernelError."""
        try:
            answer = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        except OSError as exc:
            msg = f"packet statistics: {exc.strerror}"
            raise KernelError(msg) from exc
        packets, dropped, _freezes = _STATISTICS.unpack(answer)
        self._packets += packets  # the kernel's begin anew with each question
        self._dropped += dropped
        return Counts(self._packets - self._dropped, self._dropped)

    def _status(self, start: int) -> int:
        return int(_BLOCK_HEAD.unpack_from(self._memory, start)[0])
