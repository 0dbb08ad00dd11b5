"""Netlink messages: what we write we read back, and what is damaged is MessageError alone."""

import struct
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_interface,
)
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.kernel import answers, messages, parse, wire
from overlay.kernel.base import KernelError
from overlay.kernel.links import LinkInfo, parse_link
from overlay.kernel.nft import NftError
from overlay.kernel.nft_generation import _parse_generation
from overlay.kernel.wire import MessageError, attribute
from overlay.model.address import MacAddress
from overlay.model.kernel import (
    NODE_TABLE,
    FdbEntry,
    KernelObject,
    LinkAddress,
    Neighbor,
    Op,
    Route,
    Rule,
    UnreachableRoute,
)
from tests.unit import odd

DEVICE, INDEX = "overlay.1", 7
v4 = st.integers(1 << 24, (1 << 32) - 1).map(IPv4Address)
v6 = st.integers(1 << 112, (1 << 128) - 1).map(IPv6Address)
networks = st.builds(
    lambda a, n: IPv4Network((int(a), n), strict=False), v4, st.integers(1, 32)
) | st.builds(lambda a, n: IPv6Network((int(a), n), strict=False), v6, st.integers(1, 128))
macs = st.binary(min_size=6, max_size=6).map(lambda raw: MacAddress(raw.hex(":")))
gateways = st.none() | v4 | v6
objects = st.one_of(
    st.builds(
        Route,
        networks,
        st.just(DEVICE),
        gateways,
        st.booleans(),
        st.sampled_from([254, NODE_TABLE, 100]),
        # What an IPv6 route names as 0 the kernel calls 1024, and back.
        st.integers(0, 2**32 - 1).filter(lambda metric: metric != 1024),
    ),
    st.builds(UnreachableRoute, networks),
    st.builds(Neighbor, st.just(DEVICE), v4 | v6, macs),
    st.builds(FdbEntry, st.just(DEVICE), macs, v4 | v6),
    st.builds(LinkAddress, st.just(DEVICE), (v4 | v6).map(ip_interface)),
    st.builds(Rule, networks, st.integers(1, 2**32 - 1)),
)

Message = tuple[bytes, int, int]


def readers(message: Message) -> dict[str, Callable[[], Any]]:
    """Return everything that reads a message."""
    return {
        "routes": lambda: parse.routes([message], {INDEX: DEVICE}),
        "neighbors": lambda: parse.neighbors([message], DEVICE, INDEX),
        "fdb": lambda: parse.fdb([message], DEVICE, INDEX),
        "addresses": lambda: parse.addresses([message], DEVICE, INDEX),
        "rules": lambda: parse.rules([message]),
        "route_place": lambda: parse.route_place(*message),
        "route_way": lambda: parse.route_way(*message),
        "route_maker": lambda: parse.route_maker(message),
        "neighbor_address": lambda: parse.neighbor_address(*message),
        "link": lambda: parse_link(*message),
    }


def reader(item: KernelObject) -> str:
    names = {
        Route: "routes",
        UnreachableRoute: "routes",
        Neighbor: "neighbors",
        FdbEntry: "fdb",
        LinkAddress: "addresses",
        Rule: "rules",
    }
    return names[type(item)]


def body(item: KernelObject) -> bytes:
    return messages.request(Op("set", item), {DEVICE: INDEX}).body


@given(objects)
def test_what_is_written_is_read_back(item: KernelObject) -> None:
    data = body(item)
    found = readers((data, 0, len(data)))[reader(item)]()
    is_local = isinstance(item, LinkAddress) and item.address.is_link_local
    assert found == ([] if is_local else [item])


@given(st.binary(max_size=80) | objects.map(body).flatmap(odd.damaged))
@example(b"")
@example(b"\x02" * 12)
@example(b"\x02" + b"\0" * 15)
def test_what_is_damaged_is_read_or_is_a_message_error(data: bytes) -> None:
    # Behind the message lies another one, which must not be looked at.
    whole = (b"\xff" * 4 + data + b"\xff" * 64, 4, 4 + len(data))
    alone = (data, 0, len(data))
    for name, read in readers(alone).items():
        found = odd.outcome(MessageError, read)
        again = odd.outcome(MessageError, readers(whole)[name])
        if not isinstance(found, MessageError):
            assert found == again
        assert isinstance(found, MessageError) == isinstance(again, MessageError)


@given(
    st.lists(st.binary(max_size=40), max_size=4).map(
        lambda bodies: b"".join(
            struct.pack("=IHHII", 16 + len(b), 24, 0, n, 9) + b + b"\0" * (-len(b) % 4)
            for n, b in enumerate(bodies)
        )
    )
)
def test_datagram_is_taken_apart_and_never_read_beyond_its_end(data: bytes) -> None:
    parts = list(wire.split(data))
    assert [sequence for _, _, sequence, *_ in parts] == list(range(len(parts)))
    for cut in range(len(data)):
        found = odd.outcome(MessageError, lambda: list(wire.split(data[:cut])))  # noqa: B023 - at once
        assert isinstance(found, MessageError) or len(found) <= len(parts)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(struct.pack("=IHHII", 15, 24, 0, 1, 0), id="shorter than its header"),
        pytest.param(struct.pack("=IHHII", 0, 24, 0, 1, 0), id="of no length: no endless loop"),
        pytest.param(struct.pack("=IHHII", 2**32 - 1, 24, 0, 1, 0), id="longer than all"),
    ],
)
def test_message_of_an_impossible_length_is_an_error(data: bytes) -> None:
    with pytest.raises(MessageError, match="a message of"):
        list(wire.split(data))


@pytest.mark.parametrize("number", [0, -1, -22, 1, -4096, 2**31 - 1, -(2**31)])
def test_error_number_is_one_or_a_kernel_error(number: int) -> None:
    data = struct.pack("=i", number)
    found = odd.outcome(KernelError, lambda: answers.error_number(data, 0, 4))
    assert found == -number or isinstance(found, KernelError)
    assert isinstance(
        odd.outcome(MessageError, lambda: answers.error_number(data, 0, 3)), MessageError
    )


@given(st.binary(max_size=60), st.integers(0, 0xFFFF))
def test_extended_text_is_text_or_a_message_error(data: bytes, flags: int) -> None:
    found = odd.outcome(
        MessageError, lambda: answers.extended_text(flags | 0x200, data, 0, len(data))
    )
    assert isinstance(found, MessageError | str)


@given(st.binary(max_size=60))
@example(struct.pack("=IHHII", 20, 2, 0, 1, 0) + struct.pack("=i", -(2**31)))
@example(struct.pack("=IHHII", 20, 2, 0, 1, 0))
@example(struct.pack("=IHHIIBBH", 20, 0xA0F, 0, 1, 0, 0, 0, 0) + attribute(1, b"\0\0\1"))
@example(b"")
def test_generation_is_a_number_or_an_nft_error(data: bytes) -> None:
    found = odd.outcome(NftError, lambda: _parse_generation(data))
    assert isinstance(found, NftError) or 0 <= found < 2**32


def test_generation_is_read() -> None:
    data = struct.pack("=IHHIIBBH", 28, 0xA0F, 0, 1, 0, 0, 0, 0) + attribute(1, b"\0\0\1\2")
    assert _parse_generation(data) == 258


def test_link_message_without_attributes_is_a_link_without_a_name() -> None:
    found = parse_link(b"\0" * 16, 0, 16)
    assert found == LinkInfo(0, "", is_up=False, mtu=0, mac="", alias="", vxlan=None)
