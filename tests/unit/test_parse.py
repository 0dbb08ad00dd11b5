"""Dumps are read as the plain reader reads them, whatever was read before; echoes are known."""

import struct
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from overlay.kernel import messages, parse
from overlay.kernel.echoes import Echoes
from overlay.kernel.layout import U32, Layout
from overlay.kernel.wire import MessageError, attribute
from overlay.model.address import MacAddress
from overlay.model.kernel import FdbEntry, KernelObject, Op
from tests.unit import odd, reference_reader
from tests.unit.test_messages import DEVICE, INDEX, body, macs, objects, v4, v6

# Bodies as the kernel might send them: any attributes, in any order, of few lengths, so that
# many have the length of another one.
attribute_lists = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 15, 30, 0x8008]),
        st.sampled_from([bytes(4), b"\1\2\3\4", b"\2\0\0\0\0\1", bytes(16), b"\7\0", b""]),
    ),
    max_size=6,
)
routes = st.tuples(
    st.sampled_from([2, 10, 7]),
    st.integers(0, 32),
    st.sampled_from([0, 254]),
    st.sampled_from([79, 79, 79, 4]),
    st.sampled_from([1, 7, 6]),
    st.sampled_from([0, 4]),
).map(lambda x: struct.pack("=BBBBBBBBI", x[0], x[1], 0, 0, x[2], x[3], 0, x[4], x[5]))
neighbors = st.tuples(
    st.sampled_from([2, 7, 10]), st.sampled_from([INDEX, 8]), st.sampled_from([0x80, 0x40, 4])
).map(lambda x: struct.pack("=BBHiHBB", x[0], 0, 0, x[1], x[2], 2, 1))


def built(fixed: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda start, parts: start + b"".join(attribute(kind, value) for kind, value in parts),
        fixed,
        attribute_lists,
    )


bodies = (built(routes) | built(neighbors) | objects.map(body)).flatmap(
    lambda each: st.just(each) | odd.damaged(each)
)


@given(st.lists(bodies, min_size=1, max_size=8))
def test_messages_are_read_as_the_plain_reader_reads_them(data: list[bytes]) -> None:
    names = {INDEX: DEVICE}
    for each in data:
        whole = (b"\xff" * 3 + each + b"\xff" * 40, 3, 3 + len(each))
        for found, expected in (
            (lambda: parse.routes([whole], names), lambda: reference_reader.routes(whole, names)),  # noqa: B023 - at once
            (
                lambda: parse.neighbors([whole], DEVICE, INDEX),  # noqa: B023 - at once
                lambda: reference_reader.neighbors(whole, DEVICE, INDEX),  # noqa: B023 - at once
            ),
            (
                lambda: parse.fdb([whole], DEVICE, INDEX),  # noqa: B023 - at once
                lambda: reference_reader.fdb(whole, DEVICE, INDEX),  # noqa: B023 - at once
            ),
        ):
            one, other = odd.outcome(MessageError, found), odd.outcome(MessageError, expected)
            assert isinstance(one, MessageError) == isinstance(other, MessageError)
            if not isinstance(one, MessageError):
                assert one == other


def test_layout_reads_a_message_of_the_same_length_with_other_attributes() -> None:
    layout = Layout(struct.Struct("=I"), {1: "", 2: U32}, [(3, "three"), (4, "four")])
    start = struct.pack("=I", 9)
    one = start + attribute(1, b"abcd") + attribute(2, struct.pack("=I", 5))
    other = start + attribute(2, struct.pack("=I", 6)) + attribute(3, b"wxyz")
    for _ in range(2):
        assert layout.read(one, 0, len(one)) == ((9,), (b"abcd", 5, ""))
        assert layout.read(other, 0, len(other)) == ((9,), (None, 6, "three"))
        assert layout.read(start, 0, 4) == ((9,), (None, None, ""))


def notice(op: Op, port: int = 0) -> bytes:
    """Return what the kernel tells of ``op``: our request, with ages behind forwarding entries."""
    target = op.target
    told = Op("set", target)
    data = messages.request(told, {DEVICE: INDEX}).body
    if isinstance(target, FdbEntry):
        data += attribute(3, bytes(16))
    kind = messages.request(op, {DEVICE: INDEX}).kind
    return struct.pack("=IHHII", 16 + len(data), kind, 0, 0, port) + data


def expect(echoes: Echoes, ops: Iterable[Op]) -> None:
    requests = [messages.request(op, {DEVICE: INDEX}) for op in ops]
    echoes.expect((each.kind, each.body) for each in requests)


entries = st.builds(FdbEntry, st.just(DEVICE), macs, v4 | v6)
verbs = st.sampled_from(["set", "del"])


@given(st.lists(st.builds(Op, verbs, entries), max_size=5), st.builds(Op, verbs, entries))
def test_only_what_was_written_last_is_an_echo(written: list[Op], told: Op) -> None:
    echoes = Echoes(7)
    expect(echoes, written)
    last: dict[MacAddress, Op] = {}
    for op in written:
        assert isinstance(op.target, FdbEntry)
        last[op.target.mac] = op
    assert isinstance(told.target, FdbEntry)
    mine = last.get(told.target.mac)
    is_echo = mine is not None and mine.verb == told.verb
    is_echo = is_echo and (told.verb == "del" or (mine is not None and mine == told))
    assert echoes.takes(notice(told)) is is_echo
    for op in last.values():
        if op is not mine:
            assert echoes.takes(notice(op)), "each is known once"
    echoes.forget()
    assert not any(echoes.takes(notice(op)) for op in written)


@given(objects.filter(lambda item: not isinstance(item, FdbEntry)), st.sampled_from([0, 7, 8]))
def test_what_carries_our_port_is_an_echo(item: KernelObject, port: int) -> None:
    told = notice(Op("set", item), port)
    assert Echoes(7).takes(told) is (port == 7)
    assert not Echoes(0).takes(told)
    assert not Echoes(7).takes(told + told), "two messages are looked at one by one"


@given(entries, st.binary(max_size=60) | st.just(b""))
def test_what_is_damaged_is_no_echo(entry: FdbEntry, data: bytes) -> None:
    echoes = Echoes(7)
    op = Op("set", entry)
    expect(echoes, [op])
    whole = notice(op)
    assert not echoes.takes(data) or data[12:16] == b"\7\0\0\0"
    for cut in range(len(whole)):
        assert not echoes.takes(whole[:cut])
        rest = struct.pack("=I", cut) + whole[4:cut]
        assert not echoes.takes(rest)
    assert echoes.takes(whole)
