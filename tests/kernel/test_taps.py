"""Filters and rings on real sockets: what is let through, what is dropped, what a file holds."""

import contextlib
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from overlay.kernel.base import KernelError
from overlay.kernel.ring import Captured, Ring
from overlay.kernel.taps import Taps, packet_socket
from overlay.model.address import IPAddress
from overlay.trace.bpf import probe_filter, tunnel_filter
from overlay.trace.pcap import file_header, record
from tests.kernel.netns import MakeNetns, Netns, eventually, veth

pytestmark = pytest.mark.kernel

PORT: Final = 8472
ETHERNET: Final = bytes(12)
END: Final = b"\x88\xb5END!"  # a type for experiments (IEEE 802): no filter here wants it


def ip(source: str, destination: str, protocol: int, body: bytes, options: bytes = b"") -> bytes:
    """Return a packet behind its Ethernet type, checksums left out: filters do not look."""
    a, b = ip_address(source), ip_address(destination)
    if a.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
        return b"\x86\xdd" + head + a.packed + b.packed + body
    words = 5 + len(options) // 4
    size = words * 4 + len(body)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, size, 0, 0, 64, protocol, 0)
    return b"\x08\x00" + head + a.packed + b.packed + options + body


def udp(port: int, body: bytes) -> bytes:
    return struct.pack("!HHHH", 40000, port, 8 + len(body), 0) + body


def vxlan(
    inner: bytes, *, outer: tuple[str, str] = ("192.0.2.1", "192.0.2.2"), port: int = PORT,
    options: bytes = b"",
) -> bytes:  # fmt: skip
    """Return a frame with ``inner``, which begins with its type, in a tunnel (RFC 7348)."""
    tunnel = struct.pack("!II", 1 << 27, 1 << 8) + ETHERNET + inner
    return ETHERNET + ip(*outer, 17, udp(port, tunnel), options)


def later_fragment() -> bytes:
    """Return a fragment whose bytes at the port's place are the tunnel's port."""
    packet = ip("192.0.2.1", "192.0.2.2", 17, udp(PORT, b"x" * 60))
    return ETHERNET + packet[:8] + b"\x00\x10" + packet[10:]


V4 = ip("10.244.1.2", "10.244.2.2", 1, b"icmp")
V6 = ip("fd00::1", "fd00::2", 58, b"icmp6")
OUTER6 = ("2001:db8::1", "2001:db8::2")
FRAMES: Final = {
    "4 in 4": vxlan(V4),
    "4 in 4, back": vxlan(ip("10.244.2.2", "10.244.1.2", 1, b""), outer=("192.0.2.2", "192.0.2.1")),
    "4 in 4, another peer": vxlan(V4, outer=("192.0.2.1", "192.0.2.9")),
    "4 in 4, another pod": vxlan(ip("10.244.1.9", "10.244.2.9", 1, b"")),
    "4 in 4, options": vxlan(V4, options=b"\x01" * 8),
    "6 in 4": vxlan(V6),
    "4 in 6": vxlan(V4, outer=OUTER6),
    "6 in 6": vxlan(V6, outer=OUTER6),
    "another port": vxlan(V4, port=4789),
    "tcp": ETHERNET + ip("192.0.2.1", "192.0.2.2", 6, udp(PORT, b"x" * 60)),
    "a later fragment": later_fragment(),
    "plain": ETHERNET + V4,
    "cut off": (ETHERNET + ip("192.0.2.1", "192.0.2.2", 17, udp(PORT, b"")))[:36],
    "arp": ETHERNET + b"\x08\x06" + bytes(28),
}
TUNNELED: Final = {name for name in FRAMES if " in " in name}


@pytest.fixture(scope="module")
def line(make_module_netns: MakeNetns) -> tuple[Netns, Netns]:
    here, there = make_module_netns(), make_module_netns()
    veth(here, "va", there, "vb")
    return here, there


def seen(line: tuple[Netns, Netns], program: bytes) -> set[str]:
    """Return the names of the frames that a socket behind ``program`` gets."""
    here, there = line
    with (
        contextlib.closing(there.call(lambda: packet_socket("vb", program))) as tap,
        contextlib.closing(there.call(lambda: packet_socket("vb", keep(END)))) as end,
        contextlib.closing(here.call(lambda: packet_socket("va", keep(b"\xff\xff")))) as sender,
    ):
        for frame in FRAMES.values():
            sender.send(frame)
        sender.send(ETHERNET + END)
        end.settimeout(20)
        end.recv(2048)  # the last of them has come: so have the others
        tap.setblocking(False)
        got = []
        with contextlib.suppress(BlockingIOError):
            while True:
                got.append(tap.recv(2048))
    assert len(got) == len(set(got))
    return {name for name, frame in FRAMES.items() if frame in got}


def keep(kind: bytes) -> bytes:
    """Return a program for one Ethernet type, by hand: it must not rest on what is tested."""
    number = int.from_bytes(kind[:2], "big")
    code = [(0x28, 0, 0, 12), (0x15, 0, 1, number), (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def addresses(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(ip_address(text) for text in texts)


@pytest.mark.parametrize(
    ("peers", "pods", "expected"),
    [
        pytest.param((), (), TUNNELED, id="all"),
        pytest.param(
            ("192.0.2.2",), (),
            {"4 in 4", "4 in 4, back", "4 in 4, another pod", "4 in 4, options", "6 in 4"},
            id="a peer",
        ),
        pytest.param(("2001:db8::2",), (), {"4 in 6", "6 in 6"}, id="a peer over IPv6"),
        pytest.param(
            ("192.0.2.2", "2001:db8::2"), (), TUNNELED - {"4 in 4, another peer"}, id="in both"
        ),
        pytest.param(
            (), ("10.244.1.2",), TUNNELED - {"4 in 4, another pod", "6 in 4", "6 in 6"}, id="a pod"
        ),
        pytest.param((), ("fd00::2",), {"6 in 4", "6 in 6"}, id="a pod over IPv6"),
        pytest.param(("192.0.2.9",), ("10.244.1.2",), {"4 in 4, another peer"}, id="both"),
        pytest.param(("192.0.2.77",), (), set(), id="nobody"),
    ],
)  # fmt: skip
def test_filter_lets_through_what_was_asked_for(
    line: tuple[Netns, Netns], peers: tuple[str, ...], pods: tuple[str, ...], expected: set[str]
) -> None:
    assert seen(line, tunnel_filter(PORT, addresses(*peers), addresses(*pods))) == expected


def test_probe_filter_sees_the_destination_and_errors_to_the_source(
    line: tuple[Netns, Netns],
) -> None:
    assert seen(line, probe_filter(*addresses("10.244.9.9", "10.244.2.2"))) == {"plain"}
    assert seen(line, probe_filter(*addresses("10.244.2.2", "10.244.9.9"))) == {"plain"}, "ICMP"
    assert seen(line, probe_filter(*addresses("192.0.2.2", "10.244.9.9"))) == set(), "not TCP, UDP"


def test_device_that_is_not_there_is_named(netns: Netns) -> None:
    with pytest.raises(KernelError, match="gone0: packets cannot be looked at"):
        netns.call(lambda: packet_socket("gone0", keep(END)))


@contextlib.contextmanager
def ring(line: tuple[Netns, Netns], blocks: int) -> Iterator[tuple[Ring, Callable[[bytes], int]]]:
    here, there = line
    program = tunnel_filter(PORT)
    with (
        there.call(lambda: Ring("vb", program, blocks)) as found,
        contextlib.closing(here.call(lambda: packet_socket("va", keep(END)))) as sender,
    ):
        yield found, sender.send


def test_ring_gives_frames_as_they_came(line: tuple[Netns, Netns]) -> None:
    sent = [vxlan(V4 + bytes((number,))) for number in range(50)]
    got: list[Captured] = []

    def has(count: int) -> bool:
        got.extend(found.read(0.05))
        return len(got) == count

    with ring(line, 2) as (found, send):
        for number, frame in enumerate(sent, 1):
            send(frame)
            send(FRAMES["tcp"])
            if number % 10 == 0:
                eventually(lambda sent=number: has(sent), timeout_s=20)  # type: ignore[misc]  # a count
        counts = found.counts()
    assert [each.data for each in got] == sent
    assert all(each.length == len(each.data) and not each.is_outgoing for each in got)
    assert (counts.packets, counts.dropped) == (len(sent), 0)


def test_ring_that_is_full_drops_and_counts(line: tuple[Netns, Netns]) -> None:
    with ring(line, 1) as (found, send):
        frame = vxlan(V4 + bytes(1300))
        for _ in range(1000):  # a block holds some 180
            send(frame)
        eventually(lambda: found.counts().dropped, timeout_s=20)
        got = list(found.read(1))
        counts = found.counts()
    assert 0 < len(got) <= counts.packets
    assert counts.packets + counts.dropped == 1000


def test_file_is_read_by_tcpdump(line: tuple[Netns, Netns], tmp_path: Path) -> None:
    here, _ = line
    path = tmp_path / "seen.pcap"
    frames = [FRAMES["4 in 4"], FRAMES["6 in 6"]]
    path.write_bytes(file_header() + b"".join(record(f, len(f), 1, 5) for f in frames))
    with contextlib.suppress(FileNotFoundError):
        text = here.run("tcpdump", "-nr", str(path))
        assert "192.0.2.1.40000 > 192.0.2.2.8472" in text
        assert "2001:db8::1.40000 > 2001:db8::2.8472" in text
        return
    pytest.skip("needs tcpdump")


def test_taps_tell_what_came_in_from_what_went_out(line: tuple[Netns, Netns]) -> None:
    here, there = line
    program = tunnel_filter(PORT)
    with (
        here.call(lambda: Taps({"va": program})) as out,
        there.call(lambda: Taps({"vb": program})) as into,
        contextlib.closing(here.call(lambda: packet_socket("va", keep(END)))) as sender,
    ):
        sender.send(FRAMES["4 in 4"])
        (gone,) = out.collect(lambda found: bool(found), 20)
        (come,) = into.collect(lambda found: bool(found), 20)
    assert (gone.device, gone.is_outgoing) == ("va", True)
    assert (come.device, come.is_outgoing) == ("vb", False)
    assert gone.data == come.data == FRAMES["4 in 4"]
