"""JSON from outside: a document that is safe to handle, or ValueError, in time."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.model.document import DEEPEST, is_plain, parse_json
from tests.unit import odd


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param('{"a": NaN}', id="NaN"),
        pytest.param("[-Infinity]", id="infinity"),
        pytest.param("[1e999]", id="a number that becomes infinite"),
        pytest.param("9" * 10_000, id="a number of 10,000 digits"),
        pytest.param("[" * 1_000_000, id="cut off a million levels deep"),
        pytest.param("[" * 100_000 + "]" * 100_000, id="deeper than Python can"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param("{}".encode("utf-16"), id="not UTF-8"),
        pytest.param("\ufeff{}", id="byte order mark"),
        pytest.param('{"a": "\x00"}', id="control character in a string"),
        pytest.param("{} {}", id="two"),
    ],
)
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    assert isinstance(odd.outcome(ValueError, lambda: parse_json(text)), ValueError)


@pytest.mark.parametrize("depth", [1, DEEPEST, DEEPEST + 1, 500])
def test_depth_is_bounded_to_the_level(depth: int) -> None:
    document = odd.nested(depth)
    if depth <= DEEPEST:
        assert parse_json(odd.dumped(document)) == document
    else:
        with pytest.raises(ValueError, match="levels deep"):
            parse_json(odd.dumped(document))


def test_many_brackets_are_not_deep() -> None:
    document: Any = [[{"a": []}] for _ in range(10_000)]
    assert parse_json(json.dumps(document)) == document


def test_of_a_key_that_stands_twice_the_last_counts() -> None:
    assert parse_json('{"a": 1, "b": 2, "a": 3}') == {"a": 3, "b": 2}


@given(odd.anything)
def test_any_document_reads_as_it_was_written_or_is_an_error(document: Any) -> None:
    text = odd.dumped(document)
    try:
        found = parse_json(text)
    except ValueError:
        return
    # What was let in can be written again as JSON that everybody reads, and printed.
    assert found == json.loads(text)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert repr(found)


@given(st.binary() | st.text())
@example(b"\x00\x00\x00\x7b")
def test_any_bytes_are_a_document_or_a_value_error(text: str | bytes) -> None:
    try:
        found = parse_json(text)
    except ValueError:
        return
    json.dumps(found, allow_nan=False)


@given(odd.texts)
@example("\ud800")
@example("a\0")
@example("é")
def test_plain_text_can_be_written_to_a_file(text: str) -> None:
    assert is_plain(text) == ("\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text))
