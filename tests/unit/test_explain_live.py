"""Where a probe was seen, and what follows from where it was not."""

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from overlay.model.address import IPAddress
from overlay.trace.facts import Observed
from overlay.trace.live import Sighting, What, in_order, judge, taps_for, what_is
from tests.unit import ways
from tests.unit.ways import FAR, POD, observed

TOKEN = bytes(range(100, 116))
POD6, FAR6 = ip_address("fd00:1::2"), ip_address("fd00:2::2")


def seen(text: str) -> list[Sighting]:
    """Return sightings from words like ``opod1>probe``, ``eth0<answer``."""
    found = []
    for number, word in enumerate(text.split()):
        sign = ">" if ">" in word else "<"
        device, _, what = word.partition(sign)
        kinds: dict[str, What] = {"probe": "probe", "answer": "answer", "refusal": "refusal"}
        found.append(Sighting(device, kinds[what], sign == ">", number * 0.5))
    return found


def with_udp() -> Observed:
    leg = ways.leg()
    return observed(replace(leg, packet=replace(leg.packet, protocol="udp", port=53)))


PASSED = "opod1<probe overlay.1>probe eth0>probe "


@pytest.mark.parametrize(
    ("facts", "sightings", "expected", "is_lost"),
    [
        pytest.param(
            observed(), PASSED + "eth0<answer overlay.1<answer opod1>answer",
            "answered after 2.50 ms", False, id="answered",
        ),
        pytest.param(
            observed(), "", "it left its sender and was not seen on opod1: lost on this node", True,
            id="not even sent",
        ),
        pytest.param(
            observed(), "opod1<probe",
            "it left opod1 and was not seen on overlay.1: lost on this node", True,
            id="lost before the tunnel",
        ),
        pytest.param(
            observed(), "opod1<probe overlay.1>probe",
            "it left overlay.1 and was not seen on eth0: lost on this node", True,
            id="lost in the tunnel",
        ),
        pytest.param(
            observed(), PASSED,
            "it left by eth0, and no answer came: lost in the underlay or on n2", True,
            id="lost beyond",
        ),
        pytest.param(
            observed(), PASSED + "eth0<answer",
            "the answer came by eth0 and was not seen on overlay.1: lost on this node", True,
            id="the answer is not unpacked",
        ),
        pytest.param(
            observed(), PASSED + "eth0<answer overlay.1<answer",
            "the answer came by overlay.1 and was not seen on opod1: lost on this node", True,
            id="the answer is not handed on",
        ),
        pytest.param(
            observed(), PASSED + "opod1>refusal", "refused: an ICMP error came by opod1", True,
            id="refused",
        ),
        pytest.param(
            with_udp(), PASSED, "it left by eth0; nothing answered the datagram", False,
            id="a datagram needs no answer",
        ),
    ],
)  # fmt: skip
def test_judgement(facts: Observed, sightings: str, expected: str, is_lost: bool) -> None:
    found = judge(facts, taps_for(facts), seen(sightings))
    assert (found.text, found.is_lost) == (expected, is_lost)


def test_sightings_are_told_as_the_way_goes() -> None:
    taps = taps_for(observed())
    mixed = seen("opod1>answer eth0>probe overlay.1<answer overlay.1>probe eth0<answer opod1<probe")
    assert [f"{s.device} {s.what}" for s in in_order(taps, mixed)] == [
        "opod1 probe",
        "overlay.1 probe",
        "eth0 probe",
        "eth0 answer",
        "overlay.1 answer",
        "opod1 answer",
    ]


def packet(source: IPAddress, destination: IPAddress, protocol: int, body: bytes) -> bytes:
    if source.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0)
    return head + source.packed + destination.packed + body


def icmp(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, 7, 1) + body


def framed(inside: bytes, *, is_tunneled: bool = False) -> bytes:
    frame = bytes(12) + (b"\x86\xdd" if inside[0] >> 4 == 6 else b"\x08\x00") + inside
    if not is_tunneled:
        return frame
    tunnel = struct.pack("!HHHHII", 40000, 8472, 0, 0, 1 << 27, 1 << 8) + frame
    return bytes(12) + b"\x08\x00" + packet(ways.HERE, ways.THERE, 17, tunnel)


DATAGRAM = struct.pack("!HHHH", 40000, 53, 8 + len(TOKEN), 0) + TOKEN


@pytest.mark.parametrize("is_tunneled", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "types"),
    [(POD, FAR, (1, 8, 0, 3)), (POD6, FAR6, (58, 128, 129, 1))],
    ids=["IPv4", "IPv6"],
)
def test_frames_are_told_apart(
    one: IPAddress, other: IPAddress, types: tuple[int, int, int, int], is_tunneled: bool
) -> None:
    protocol, request, reply, error = types

    def is_what(inside: bytes, *, is_udp: bool) -> What | None:
        return what_is(framed(inside, is_tunneled=is_tunneled), TOKEN, other, is_udp=is_udp)

    asked = packet(one, other, protocol, icmp(request, TOKEN))
    sent = packet(one, other, 17, DATAGRAM)
    assert is_what(asked, is_udp=False) == "probe"
    assert is_what(packet(other, one, protocol, icmp(reply, TOKEN)), is_udp=False) == "answer"
    assert is_what(packet(other, one, protocol, icmp(error, asked)), is_udp=False) == "refusal"
    assert is_what(sent, is_udp=True) == "probe"
    assert is_what(packet(other, one, 17, DATAGRAM), is_udp=True) == "answer"
    assert is_what(packet(other, one, protocol, icmp(error, sent)), is_udp=True) == "refusal"
    assert is_what(packet(one, other, 17, DATAGRAM[:-1]), is_udp=True) is None
