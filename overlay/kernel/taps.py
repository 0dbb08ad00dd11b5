"""Packet sockets that only look: filtered in the kernel, opened before anything is sent.

``tcpdump -i DEVICE`` with a filter of ``overlay.trace.bpf``. What such a
socket gets is a copy; nothing is changed or held up.
"""

import ctypes
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self

from overlay.kernel.base import KernelError

_ETH_P_ALL: Final = 0x0003
_PACKET_OUTGOING: Final = 4  # linux/if_packet.h
_ARPHRD_ETHER: Final = 1
_SO_ATTACH_FILTER: Final = 26
_SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h; its answer bears the same number
_TIMESPEC: Final = struct.Struct("=qq")
_EXTRA: Final = socket.CMSG_SPACE(_TIMESPEC.size)
_LONGEST: Final = 65536  # bytes of a frame
_EMPTY: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)  # keep nothing


@dataclass(frozen=True, slots=True)
class Frame:
    """What a tap saw. ``at_ns`` is the kernel's stamp: to compare with another's, no more."""

    device: str
    is_outgoing: bool
    data: bytes
    at_ns: int


def packet_socket(
    device: str, program: bytes, prepare: Callable[[socket.socket], None] | None = None
) -> socket.socket:
    """Return a raw packet socket on ``device`` of the thread's namespace, behind ``program``.

    Not one frame from before the filter is in it, nor from before ``prepare``.
    Raises KernelError.
    """
    try:
        # Of no protocol until it is bound: nothing comes in before the filter.
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    except OSError as exc:
        msg = f"no packet socket: {exc.strerror}"
        raise KernelError(msg) from exc
    try:
        attach_filter(tap, program)
        if prepare is not None:
            prepare(tap)
        tap.bind((device, _ETH_P_ALL))
        hardware = tap.getsockname()[3]
    except OSError as exc:
        tap.close()
        msg = f"{device}: packets cannot be looked at: {exc.strerror}"
        raise KernelError(msg) from exc
    if hardware != _ARPHRD_ETHER:
        tap.close()
        msg = f"{device}: not an Ethernet interface; its packets cannot be looked at"
        raise KernelError(msg)
    return tap


def attach_filter(tap: socket.socket, program: bytes) -> None:
    """Attach a classic BPF program (``struct sock_fprog``). Raises OSError."""
    code = ctypes.create_string_buffer(program or _EMPTY, len(program or _EMPTY))
    count = len(code) // 8
    head = struct.pack("HL" if ctypes.sizeof(ctypes.c_long) == 4 else "HxxxxxxQ", count,
                       ctypes.addressof(code))  # fmt: skip
    tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)


class Taps:
    """Several devices looked at together. Raises KernelError for one that cannot be."""

    def __init__(
        self,
        programs: Mapping[str, bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._stack = ExitStack()
        self._sockets: dict[socket.socket, str] = {}
        try:
            for device, program in programs.items():
                tap = self._stack.enter_context(packet_socket(device, program))
                tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                self._sockets[tap] = device
        except KernelError:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def collect(
        self, is_enough: Callable[[Sequence[Frame]], bool], timeout_s: float
    ) -> list[Frame]:
        """Return what comes until ``is_enough`` or the time is over, as it came."""
        found: list[Frame] = []
        deadline = self._clock() + timeout_s
        while not is_enough(found):
            left_s = deadline - self._clock()
            if left_s <= 0:
                break
            ready, _, _ = select.select(list(self._sockets), [], [], left_s)
            for tap in ready:
                data, extra, _flags, (_name, _protocol, kind, *_rest) = tap.recvmsg(
                    _LONGEST, _EXTRA
                )
                is_outgoing = kind == _PACKET_OUTGOING
                found.append(Frame(self._sockets[tap], is_outgoing, data, _stamp(extra)))
        return sorted(found, key=lambda frame: frame.at_ns)


def _stamp(extra: Sequence[tuple[int, int, bytes]]) -> int:
    """Return the kernel's time of a frame in nanoseconds, 0 where it gave none."""
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS) and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0
