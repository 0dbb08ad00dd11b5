"""The largest packet that reaches an address whole: ICMP echoes that must not be fragmented.

No help of the other side is needed but that it answers echoes. All addresses
at once, in two rounds: does ``size`` pass, and where not, which of the usual
sizes do. Routers need not say anything: a black hole shows by its silence.
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, Self, TypeAlias

from overlay.kernel.base import KernelError
from overlay.model.address import FAMILIES, Family, IPAddress, family_of

# Ethernet's, jumbo frames', and what PPPoE, GRE, IPsec, WireGuard and clouds leave of them; bytes.
USUAL: Final = (8951, 4000, 1500, 1492, 1480, 1476, 1460, 1450, 1440, 1430, 1420, 1400, 1380, 1280)

_AF: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_PROTOCOL: Final = {Family.IPV4: socket.IPPROTO_ICMP, Family.IPV6: socket.IPPROTO_ICMPV6}
# IP_MTU_DISCOVER and IPV6_MTU_DISCOVER; PROBE sets DF and ignores what the
# kernel has learned of the path before (linux/in.h, linux/in6.h).
_DISCOVER: Final = {Family.IPV4: (socket.IPPROTO_IP, 10), Family.IPV6: (socket.IPPROTO_IPV6, 23)}
_PROBE: Final = 3
_ECHO: Final = {Family.IPV4: 8, Family.IPV6: 128}
_REPLY: Final = {Family.IPV4: 0, Family.IPV6: 129}
_IP_HEADER: Final = {Family.IPV4: 20, Family.IPV6: 40}  # bytes
_ICMP: Final = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_LEAST: Final = 64  # bytes; asks only whether somebody answers
_AGAIN_S: Final = 0.25  # an echo or its answer may get lost
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_BYTES: Final = 4 << 20
# Sent before answers are taken: what they take of the smallest usual buffer
# (net.core.rmem_default, 208 KiB) leaves room for those that come late.
_BATCH: Final = 16

Question: TypeAlias = tuple[IPAddress, int]


def largest_packets(
    addresses: Iterable[IPAddress],
    size: int,
    *,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Mapping[IPAddress, int]:
    """Return for each address the largest packet in bytes that was answered, at most ``size``.

    0 for an address that answers nothing. Ends when all is known, after twice
    ``wait_s`` a family at the latest. Raises KernelError without the right to
    raw sockets.
    """
    best = dict.fromkeys(addresses, 0)
    for family in FAMILIES:
        chosen = [address for address in best if family_of(address) is family]
        if not chosen:
            continue
        with _Echoes(family) as echoes:
            asked = {(address, length) for address in chosen for length in (_LEAST, size)}
            _note(best, echoes.ask(asked, wait_s, clock))
            doubtful = [address for address in chosen if 0 < best[address] < size]
            lengths = [length for length in USUAL if length < size]
            again = {(address, length) for address in doubtful for length in lengths}
            _note(best, echoes.ask(again, wait_s, clock))
    return best


def _note(best: dict[IPAddress, int], answered: Iterable[Question]) -> None:
    for address, length in answered:
        best[address] = max(best[address], length)


class _Echoes:
    """One raw socket that sends echoes and counts answers."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._identifier = os.getpid() & 0xFFFF
        try:
            self._socket = socket.socket(_AF[family], socket.SOCK_RAW, _PROTOCOL[family])
        except PermissionError as exc:
            msg = "raw sockets are root's alone"
            raise KernelError(msg) from exc
        except OSError as exc:
            msg = f"no raw {family} socket: {exc.strerror}"
            raise KernelError(msg) from exc
        self._socket.setsockopt(*_DISCOVER[family], _PROBE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        with contextlib.suppress(OSError):  # without CAP_NET_ADMIN: as much as net.core.rmem_max
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        self._socket.settimeout(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(
        self, questions: set[Question], wait_s: float, clock: Callable[[], float]
    ) -> set[Question]:
        """Return those questions, each an address and a length, that were answered in time."""
        answered: set[Question] = set()
        open_ = set(questions)
        deadline = clock() + wait_s
        while open_ and clock() < deadline:
            for some in _batches(tuple(open_)):
                open_ -= {question for question in some if not self._send(*question)}
                answered |= self._waiting(open_)
            answered |= self._receive(open_, min(deadline, clock() + _AGAIN_S), clock)
        return answered

    def _send(self, address: IPAddress, length: int) -> bool:
        """Send one echo; return False where this host itself cannot: no route, or too large."""
        payload = bytes(length - _IP_HEADER[self._family] - _ICMP.size)
        head = _ICMP.pack(_ECHO[self._family], 0, 0, self._identifier, length)
        # The kernel fills in ICMPv6's checksum itself (RFC 3542, section 3.1).
        checksum = _checksum(head) if self._family is Family.IPV4 else 0
        head = _ICMP.pack(_ECHO[self._family], 0, checksum, self._identifier, length)
        try:
            self._socket.sendto(head + payload, (str(address), 0))
        except BlockingIOError:
            return True  # sent again in a moment
        except OSError:
            return False
        return True

    def _receive(
        self, open_: set[Question], until: float, clock: Callable[[], float]
    ) -> set[Question]:
        """Take answers, which leave ``open_``, until ``until`` or until none is missing."""
        answered: set[Question] = set()
        while open_ and (left_s := until - clock()) > 0:
            if not select.select([self._socket], [], [], left_s)[0]:
                break
            answered |= self._waiting(open_)
        return answered

    def _waiting(self, open_: set[Question]) -> set[Question]:
        """Take those answers that are there, which leave ``open_``."""
        answered: set[Question] = set()
        while True:
            try:
                packet, peer = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                return answered
            except OSError:  # what a router said of an earlier probe
                continue
            question = self._answer(packet, str(peer[0]))
            if question in open_:
                open_.remove(question)
                answered.add(question)

    def _answer(self, packet: bytes, peer: str) -> Question | None:
        # IPv4's raw sockets give the IP header as well, IPv6's do not.
        start = (packet[0] & 15) * 4 if self._family is Family.IPV4 and packet else 0
        if len(packet) < start + _ICMP.size:
            return None
        kind, _code, _sum, identifier, length = _ICMP.unpack_from(packet, start)
        if kind != _REPLY[self._family] or identifier != self._identifier:
            return None
        return ip_address(peer.partition("%")[0]), length


def _batches(questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
    return (questions[at : at + _BATCH] for at in range(0, len(questions), _BATCH))


def _checksum(head: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of a header with zeros behind it."""
    total: int = sum(struct.unpack(f"!{len(head) // 2}H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
