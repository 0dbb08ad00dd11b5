"""Seals: who made a message knows the fabric's key, and it answers this question and no other.

HMAC-SHA256 (RFC 2104) over parts, each with its length before it, so that no
two lists of parts are one text. A question carries a nonce that was never used
before, and the answer's seal covers it: an answer that was recorded earlier
fits no question. Time of day decides nothing.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

SEAL_BYTES: Final = 32
NONCE_BYTES: Final = 16
TAG_BYTES: Final = 8


def seal(key: bytes, *parts: bytes) -> bytes:
    """Return the seal of ``parts`` under ``key``."""
    state = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def fitting_key(keys: Iterable[bytes], given: bytes, *parts: bytes) -> bytes | None:
    """Return the key of ``keys`` under which ``given`` is the seal of ``parts``, or None.

    It takes equally long whatever part of ``given`` is right.
    """
    for key in keys:
        if hmac.compare_digest(seal(key, *parts), given):
            return key
    return None


def node_tag(node_id: str) -> bytes:
    """Return the short name of a node in messages: the same on every node."""
    return hashlib.sha256(b"node\0" + node_id.encode(errors="replace")).digest()[:TAG_BYTES]
