"""Generations of nftables' ruleset: every transaction, whoever's, makes the next one.

For all tables of a network namespace together. They tell our own transactions
from others', without looking at any table.
"""

import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from overlay.kernel.nft import NftError
from overlay.kernel.nft_socket import NftSocket
from overlay.kernel.wire import MessageError, attributes, decoder, split

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NFT_MSG_NEWGEN: Final = (10 << 8) | 15
_NFT_MSG_GETGEN: Final = (10 << 8) | 16
_NFTA_GEN_ID, _NFTA_GEN_PROC_PID, _NFTA_GEN_PROC_NAME = 1, 2, 3
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_FAMILY: Final = struct.Struct("=BBH")  # struct nfgenmsg
_WHOLE: Final = 1 << 32

_REMEMBERED: Final = 64  # generations that we made, to tell them from others' later
_TRANSACTIONS: Final = 256  # of one table; their notices come within milliseconds


class OwnWrites:
    """Which generations this process made, whichever of its tables it wrote: for any thread.

    A change of one table of ours makes nobody list the others. All in the
    network namespace of the thread that asks first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: deque[int] = deque(maxlen=_REMEMBERED)
        self.channel = NftSocket()

    @property
    def made(self) -> frozenset[int]:
        """Return the last of them."""
        return frozenset(self._made)

    def write(self, change: Callable[[int], object]) -> tuple[int, int]:
        """Make a change; return the generations before and after it. Raises what it raises.

        ``change`` is given the generation before, and may use ``channel``.
        """
        with self._lock:
            before = self._ask()
            change(before)
            after = self._ask()
            if after == next_generation(before):  # else somebody else wrote in between
                self._made.append(after)
        return before, after

    def generation(self) -> int:
        """Return the ruleset's generation, once no write of ours goes on."""
        with self._lock:
            return self._ask()

    def are_all_since(self, before: int | None, now: int) -> bool:
        """Return whether nobody else wrote from a generation to another one."""
        made, step = self.made, before
        for _ in range(len(made) + 1):
            if step is None or step == now:
                break
            step = next_generation(step)
            if step not in made:
                return False
        return step == now

    def _ask(self) -> int:
        return asked(self.channel)


@dataclass(frozen=True, slots=True)
class Generation:
    """A ruleset's generation, and the process whose transaction made it."""

    number: int
    pid: int
    name: str  # as in /proc/PID/comm


@dataclass(slots=True)
class _Window:
    """A transaction of ours: one of the generations after ``before``, up to ``after``."""

    before: int
    after: int
    is_told: bool = False

    def holds(self, number: int) -> bool:
        """Return whether it may have made a generation. They wrap."""
        return 0 < (number - self.before) % _WHOLE <= (self.after - self.before) % _WHOLE


@dataclass(slots=True)
class OwnTransactions:
    """Our transactions about one table. The kernel tells whose tables one touched.

    Those that touched ours in the generations of our own writes are ours, one
    for each write, and all others are somebody else's.
    """

    _windows: deque[_Window] = field(
        default_factory=lambda: deque(maxlen=_TRANSACTIONS), init=False
    )

    def note(self, before: int, after: int) -> None:
        """Remember one, as ``OwnWrites.write`` returned it."""
        self._windows.append(_Window(before, after))

    def takes(self, number: int) -> bool:
        """Return whether the transaction that made this generation, and touched the table, is ours.

        Ask once for each that the kernel tells of.
        """
        for window in self._windows:
            if not window.is_told and window.holds(number):
                window.is_told = True
                return True
        return False


def asked(channel: NftSocket) -> int:
    """Return the generation of the namespace that the socket is of. Raises NftError."""
    request = _HEADER.pack(
        _HEADER.size + _FAMILY.size, _NFT_MSG_GETGEN, _NLM_F_REQUEST, 1, 0
    ) + _FAMILY.pack(socket.AF_UNSPEC, 0, 0)
    try:
        kernel = channel.get()
        kernel.sendto(request, (0, 0))
        answer = kernel.recv(8192)
    except OSError as exc:
        channel.drop()
        msg = f"the ruleset's generation cannot be read: {exc}"
        raise NftError(msg) from exc
    try:
        return _parse_generation(answer)
    except NftError:
        channel.drop()
        raise


def is_later(number: int, other: int) -> bool:
    """Return whether a generation came after ``other``. They wrap."""
    return 0 < (number - other) % _WHOLE < _WHOLE // 2


def _parse_generation(answer: bytes) -> int:
    """Return what NFT_MSG_GETGEN was answered. Raises NftError for everything else."""
    try:
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", answer, _HEADER.size)
            msg = f"the ruleset's generation cannot be read: {os.strerror(-code)}"
            raise NftError(msg)
        found = parse_generations(answer)
    # Cut off; an error number that is none.
    except (struct.error, OverflowError, MessageError) as exc:
        msg = f"the kernel's answer holds no generation: {exc}"
        raise NftError(msg) from exc
    if found:
        return found[0].number
    msg = "the kernel's answer holds no generation"
    raise NftError(msg)


@decoder
def parse_generations(data: bytes) -> list[Generation]:
    """Return the generations that netlink messages tell of; other messages are passed over.

    Raises MessageError.
    """
    found: list[Generation] = []
    for kind, _flags, _sequence, _data, start, end in split(data):
        if kind != _NFT_MSG_NEWGEN:
            continue
        parts = attributes(data, start + _FAMILY.size, end)
        (number,) = struct.unpack("!I", parts.get(_NFTA_GEN_ID, b""))
        pid = int.from_bytes(parts.get(_NFTA_GEN_PROC_PID, b""), "big")
        name = parts.get(_NFTA_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
        found.append(Generation(number, pid, name))
    return found


def next_generation(number: int) -> int:
    """Return the generation after ``number``; the kernel leaves out 0 when it wraps."""
    return (number + 1) & 0xFFFFFFFF or 1
