"""Text and JSON that others wrote: one way in, and one error for all that is wrong with it.

Stricter than ``json.loads`` where that reads what no JSON is (RFC 8259), or
what the rest of a program then stumbles over.
"""

import json
from typing import Any, Final, NoReturn

DEEPEST: Final = 64  # levels; flannel's, CNI's and our own documents have fewer than 10


def _refuse(word: str) -> NoReturn:
    msg = f"{word} is no JSON"
    raise ValueError(msg)


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:  # infinite
        msg = f"{text[:40]} is out of range"
        raise ValueError(msg)
    return number


# Made once: json.loads would make one for each text.
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def parse_json(text: str | bytes, deepest: int = DEEPEST) -> Any:
    """Return what ``text`` says; of a key that stands twice, the last value.

    Raises ValueError for what is no JSON in UTF-8, for NaN and numbers that are no
    number, and for nesting deeper than ``deepest``: to print or compare such a
    value would exhaust the stack long after it was read.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        document = _DECODER.decode(text if isinstance(text, str) else text.decode())
    except RecursionError as exc:
        raise ValueError(_too_deep(deepest)) from exc
    # Nothing is deeper than it has brackets; counting them is faster than looking.
    if _brackets(text) > deepest:
        _look_for_depth(document, deepest)
    return document


def is_plain(text: str) -> bool:
    """Return whether ``text`` can go into a file, a path or a message: UTF-8 without NUL.

    Bytes that are not UTF-8 come in from the command line and the environment
    as lone surrogates (PEP 383).
    """
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _brackets(text: str | bytes) -> int:
    if isinstance(text, str):
        return text.count("[") + text.count("{")
    return text.count(b"[") + text.count(b"{")


def _too_deep(deepest: int) -> str:
    return f"nested more than {deepest} levels deep"


def _look_for_depth(document: Any, deepest: int) -> None:
    level = [document]
    for _ in range(deepest):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    if any(isinstance(each, dict | list) for each in level):
        raise ValueError(_too_deep(deepest))
