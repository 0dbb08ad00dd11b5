"""Classic BPF programs for packet sockets: which frames a tap gets at all.

The kernel runs them for every frame before anything is copied, so that a tap
on a busy node costs little. Offsets count from the Ethernet header, which is
what a raw packet socket shows; a VLAN tag is not there any more.
Sources: linux/filter.h, Documentation/networking/filter.rst; RFC 7348 section 5.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from overlay.model.address import Family, IPAddress, family_of

_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
# BPF_LD | size | mode, BPF_LDX | BPF_B | BPF_MSH, BPF_ALU | BPF_AND, BPF_JMP | BPF_JEQ, BPF_RET
_SIZE: Final = {4: 0x00, 2: 0x08, 1: 0x10}
_LD, _ABS, _IND, _LDX_MSH, _AND, _JEQ, _RET = 0x00, 0x20, 0x40, 0xB1, 0x54, 0x15, 0x06
_WHOLE: Final = 0x40000  # bytes of a frame to keep
_FARTHEST: Final = 255  # instructions that a conditional jump reaches

_ETHERNET: Final = 14  # bytes
_TYPE: Final = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
_UDP: Final = 17
# From the UDP header: its destination port; the inner Ethernet type; the inner IP header.
_UDP_PORT, _INNER_TYPE, _INNER_IP = 2, 8 + 8 + 12, 8 + 8 + 14


@dataclass(frozen=True, slots=True)
class Equal:
    """``size`` bytes at ``offset``, masked, are ``value``.

    ``indexed`` adds the length of the IPv4 header. A ``mask`` of 0 is none.
    """

    offset: int
    size: int
    value: int
    indexed: bool = False
    mask: int = 0


@dataclass(frozen=True, slots=True)
class HeaderLength:
    """Loads the IPv4 header's length, for what is indexed. Always true."""


@dataclass(frozen=True, slots=True)
class Both:
    """All of these, from left to right."""

    parts: "tuple[Test, ...]"


@dataclass(frozen=True, slots=True)
class Either:
    """One of these."""

    parts: "tuple[Test, ...]"


Test: TypeAlias = Equal | HeaderLength | Both | Either


def tunnel_filter(
    port: int, peers: Sequence[IPAddress] = (), pods: Sequence[IPAddress] = ()
) -> bytes:
    """Return a program for VXLAN packets to UDP ``port``, over IPv4 and IPv6.

    With ``peers`` only those from or to one of these underlay addresses, with
    ``pods`` only those that carry a packet from or to one of these.
    """
    return assemble(Either((_outer_v4(port, peers, pods), _outer_v6(port, peers, pods))))


def probe_filter(source: IPAddress, destination: IPAddress) -> bytes:
    """Return a program for packets from or to ``destination``, and errors to ``source``.

    An error (ICMP) may come from any router on the way.
    """
    family = family_of(destination)
    protocol, icmp = (_ETHERNET + 9, 1) if family is Family.IPV4 else (_ETHERNET + 6, 58)
    error = Both((Equal(protocol, 1, icmp), _from_or_to(source, _ETHERNET, indexed=False)))
    wanted = Either((_from_or_to(destination, _ETHERNET, indexed=False), error))
    return assemble(Both((Equal(12, 2, _TYPE[family]), wanted)))


def assemble(test: Test) -> bytes:
    """Return the program that keeps the frames for which ``test`` holds."""
    code = _Code()
    yes, no = code.label(), code.label()
    code.emit(test, yes, no)
    code.place(yes)
    code.add(_RET, _WHOLE)
    code.place(no)
    code.add(_RET, 0)
    return code.packed()


def _outer_v4(port: int, peers: Sequence[IPAddress], pods: Sequence[IPAddress]) -> Test:
    udp = _ETHERNET  # behind it by the header's length, which is the index
    parts = (
        Equal(12, 2, _TYPE[Family.IPV4]),
        Equal(_ETHERNET + 9, 1, _UDP),
        Equal(_ETHERNET + 6, 2, 0, mask=0x1FFF),  # a later fragment has no UDP header
        HeaderLength(),
        Equal(udp + _UDP_PORT, 2, port, indexed=True),
    )
    return Both((*parts, *_chosen(Family.IPV4, udp, peers, pods)))


def _outer_v6(port: int, peers: Sequence[IPAddress], pods: Sequence[IPAddress]) -> Test:
    udp = _ETHERNET + 40
    parts = (
        Equal(12, 2, _TYPE[Family.IPV6]),
        Equal(_ETHERNET + 6, 1, _UDP),
        Equal(udp + _UDP_PORT, 2, port),
    )
    return Both((*parts, *_chosen(Family.IPV6, udp, peers, pods)))


def _chosen(
    family: Family, udp: int, peers: Sequence[IPAddress], pods: Sequence[IPAddress]
) -> Iterator[Test]:
    """Yield what narrows packets of one outer family down."""
    if peers:
        ours = [peer for peer in peers if family_of(peer) is family]
        yield Either(tuple(_from_or_to(peer, _ETHERNET, indexed=False) for peer in ours))
    if pods:
        yield Either(tuple(_inner(pod, udp, indexed=family is Family.IPV4) for pod in pods))


def _inner(pod: IPAddress, udp: int, *, indexed: bool) -> Test:
    kind = Equal(udp + _INNER_TYPE, 2, _TYPE[family_of(pod)], indexed)
    return Both((kind, _from_or_to(pod, udp + _INNER_IP, indexed=indexed)))


def _from_or_to(address: IPAddress, header: int, *, indexed: bool) -> Test:
    """Return the test for the source or destination of the IP header at ``header``."""
    source = 12 if address.version == 4 else 8
    size = len(address.packed)
    return Either(
        tuple(_is_at(address, header + at, indexed=indexed) for at in (source, source + size))
    )


def _is_at(address: IPAddress, offset: int, *, indexed: bool) -> Test:
    words = struct.unpack(f">{len(address.packed) // 4}I", address.packed)
    return Both(
        tuple(Equal(offset + 4 * place, 4, word, indexed) for place, word in enumerate(words))
    )


class _Code:
    """Instructions with labels; jumps go forward alone, as the kernel wants it."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, int, int]] = []  # code, label if true, if false, k
        self._places: dict[int, int] = {}
        self._labels = 0

    def label(self) -> int:
        self._labels += 1
        return self._labels

    def place(self, label: int) -> None:
        self._places[label] = len(self._lines)

    def add(self, code: int, k: int, yes: int = 0, no: int = 0) -> None:
        self._lines.append((code, yes, no, k))

    def emit(self, test: Test, yes: int, no: int) -> None:
        if isinstance(test, Equal):
            self.add(_LD | _SIZE[test.size] | (_IND if test.indexed else _ABS), test.offset)
            if test.mask:
                self.add(_AND, test.mask)
            self.add(_JEQ, test.value, yes, no)
        elif isinstance(test, HeaderLength):
            # Followed by what it is for, in every program here.
            self.add(_LDX_MSH, _ETHERNET)
        elif isinstance(test, Both):
            self._each(test.parts, no, last=yes, is_all=True)
        else:
            self._each(test.parts, yes, last=no, is_all=False)

    def _each(self, parts: Sequence[Test], leaves: int, last: int, *, is_all: bool) -> None:
        if not parts:
            # Never equal: what is 0 after masking with 0 is not 1.
            self.add(_LD | _ABS | _SIZE[1], 0)
            self.add(_JEQ, 0x100, leaves, last)
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            following = last if is_last else self.label()
            self.emit(part, *((following, leaves) if is_all else (leaves, following)))
            if not is_last:
                self.place(following)

    def packed(self) -> bytes:
        """Return the program. Raises ValueError for one that is too long to jump through."""
        return b"".join(
            _INSTRUCTION.pack(code, self._jump(yes, at), self._jump(no, at), k)
            for at, (code, yes, no, k) in enumerate(self._lines)
        )

    def _jump(self, label: int, at: int) -> int:
        if not label:
            return 0
        distance = self._places[label] - at - 1
        if not 0 <= distance <= _FARTHEST:
            msg = f"a jump over {distance} instructions"
            raise ValueError(msg)
        return distance
