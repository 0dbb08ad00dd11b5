"""Probes and echoes: sealed by the fabric's key, each good for one question."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.agent.mesh_answer import Answers
from overlay.mesh.seal import fitting_key, node_tag, seal
from overlay.mesh.wire import LEAST_BYTES, Kind, Message, MessageError, Path, Row, pack, unpack

KEY, OTHER = bytes(range(32)), bytes(32)
A, B, C = node_tag("a"), node_tag("b"), node_tag("c")
NONCE = b"n" * 16
PROBE = Message(Kind.PROBE, Path.OVERLAY, A, B, NONCE)
ROWS = (Row(C, 0.000123, 0.25, 0.5, 0.0), Row(A, None, None, None, None))


def reason(data: bytes, keys: tuple[bytes, ...] = (KEY,), own: bytes = B) -> str:
    with pytest.raises(MessageError) as caught:
        unpack(data, keys, own)
    return caught.value.reason


def test_seal_depends_on_key_and_on_where_parts_end() -> None:
    assert seal(KEY, b"ab", b"c") != seal(KEY, b"a", b"bc") != seal(OTHER, b"a", b"bc")
    assert fitting_key([OTHER, KEY], seal(KEY, b"x"), b"x") == KEY
    assert fitting_key([OTHER], seal(KEY, b"x"), b"x") is None
    assert fitting_key([], seal(KEY, b"x"), b"x") is None


def test_message_comes_out_as_it_went_in() -> None:
    echo = Message(Kind.ECHO, Path.UNDERLAY, B, A, NONCE, 1400, ROWS)
    assert unpack(pack(echo, KEY), (OTHER, KEY), A) == (echo, KEY)


def test_message_has_the_length_that_was_asked_for() -> None:
    data = pack(PROBE, KEY, 1472)
    assert len(data) == 1472
    assert unpack(data, (KEY,), B)[0] == PROBE
    assert len(pack(PROBE, KEY, 3)) == LEAST_BYTES


def test_message_for_another_node_or_under_another_key_is_refused() -> None:
    data = pack(PROBE, KEY)
    assert reason(data, own=C) == "misdelivered"
    assert reason(data, keys=(OTHER,)) == "unsealed"
    assert reason(data, keys=()) == "unsealed"


@given(st.integers(0, LEAST_BYTES + 39), st.integers(1, 255))
def test_message_with_any_byte_changed_is_refused(place: int, change: int) -> None:
    data = bytearray(pack(Message(Kind.ECHO, Path.OVERLAY, A, B, NONCE, 0, ROWS), KEY))
    data[place] ^= change
    assert reason(bytes(data)) in {"foreign", "unsealed"}


@given(st.binary(max_size=200))
@example(b"OVM1")
@example(b"OVM1" + bytes(LEAST_BYTES - 4))
def test_anything_else_is_refused(data: bytes) -> None:
    assert reason(data) in {"foreign", "unsealed"}


def test_sealed_message_of_a_later_version_is_refused_by_name() -> None:
    class Later(int):
        pass

    data = pack(Message(Later(9), Path.OVERLAY, A, B, NONCE), KEY)  # type: ignore[arg-type]  # on purpose
    assert reason(data) == "newer"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answering() -> Answers:
    rows = {row.tag: row for row in ROWS}
    return Answers(lambda: list(rows), rows.__getitem__, Clock())


def numbered(number: int, path: Path = Path.OVERLAY, size: int = 0) -> Message:
    return Message(Kind.PROBE, path, A, B, number.to_bytes(16, "big"), size)


def test_probe_is_echoed_once() -> None:
    answers = answering()
    echo, key = unpack(answers.echo(PROBE, KEY), (KEY,), A)
    assert (echo.kind, echo.sender, echo.nonce, echo.rows) == (Kind.ECHO, B, NONCE, ROWS)
    assert key == KEY
    with pytest.raises(MessageError, match="replayed"):
        answers.echo(PROBE, KEY)


def test_echo_for_a_path_mtu_has_the_size_wanted_and_no_rows() -> None:
    data = answering().echo(numbered(1, Path.MTU_BACK, 1472), KEY)
    assert len(data) == 1472
    assert unpack(data, (KEY,), A)[0].rows == ()


def test_echoes_a_second_are_bounded() -> None:
    clock = Clock()
    answers = Answers(list, Row, clock)
    for number in range(4000):
        answers.echo(numbered(number), KEY)
    with pytest.raises(MessageError, match="too-many"):
        answers.echo(numbered(5000), KEY)
    clock.now += 0.5
    assert answers.echo(numbered(5001), KEY)


def test_rows_that_do_not_fit_one_echo_come_with_the_next() -> None:
    tags = [node_tag(str(number)) for number in range(45)]
    answers = Answers(lambda: tags, Row, Clock())
    seen = set()
    for number in range(3):
        seen |= {row.tag for row in unpack(answers.echo(numbered(number), KEY), (KEY,), A)[0].rows}
    assert seen == set(tags)
