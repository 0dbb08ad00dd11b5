"""Odd input from outside, for hypothesis: values, texts, and bytes that were fine once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

# Lone surrogates, NUL, control characters and all the rest.
texts = st.text(st.characters(), max_size=40) | st.sampled_from(
    ["", "\0", "\ud800", "\udcff/", "a\nb", "\u2028", "x" * 300, "%s", "${HOME}", "-1", "1e999"]
)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([400, 4000]).map(lambda digits: 10**digits)
    | st.sampled_from([2**31, 2**63, -1, 0, float("nan"), float("inf")])
)
scalars = st.none() | st.booleans() | numbers | texts | st.ip_addresses().map(str)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def outcome(error: type[E], function: Callable[[], T]) -> T | E:
    """Return what ``function`` returns, or the ``error`` it raises; any other comes through."""
    try:
        return function()
    except error as exc:
        return exc


@dataclass(frozen=True)
class Deep:
    """Lists and objects in one another, made when written: hypothesis cannot print such a value."""

    levels: int


def nested(depth: int) -> Any:
    """Return lists and objects in one another, ``depth`` levels deep."""
    document: Any = 1
    for level in range(depth):
        document = [document] if level % 2 else {"a": document}
    return document


# Deeper than what is read, yet not so deep that Python's own parser gives up.
deep = st.sampled_from([40, 64, 65, 300, 900]).map(Deep)
anything = values | deep


def dumped(document: Any) -> bytes:
    """Return ``document`` as JSON; NaN and infinity as Python writes them."""
    return json.dumps(document, default=lambda deep: nested(deep.levels)).encode()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return ``whole`` with some bytes changed, cut out, doubled, or its end cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        place = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["set", "flip", "cut", "insert", "end", "double"]))
        if how == "set":
            data[place] = draw(st.sampled_from([0, 1, 4, 0x7F, 0x80, 0xFF]))
        elif how == "flip":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[place : place + draw(st.integers(1, 8))]
        elif how == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif how == "end":
            del data[place:]
        else:
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
    return bytes(data)
