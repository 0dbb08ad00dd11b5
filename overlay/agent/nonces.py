"""Nonces that need no memory: whoever has not seen the secret cannot make one.

A nonce is the time that it was given at, some random bytes, and a seal over
both. What is remembered are those that were spent, and only holders of the
fabric's key spend any: questions of anybody else push nobody's nonce out.
"""

import hmac
import secrets
import struct
import threading
from collections.abc import Callable
from typing import Final

from overlay.mesh.seal import NONCE_BYTES

_HEAD: Final = struct.Struct(">I4s")  # milliseconds modulo 2**32, random bytes
_LIFE_MS: Final = 30_000
_MOST_SPENT: Final = 4096  # within their life, by holders of the key


class Nonces:
    """Any thread may ask. ``clock`` is in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._spent: dict[bytes, float] = {}  # and when each was, oldest first

    def give(self) -> bytes:
        """Return a nonce that is good once, within 30 s."""
        return self._sealed(_HEAD.pack(self._now_ms(), secrets.token_bytes(4)))

    def is_good(self, nonce: bytes) -> bool:
        """Return whether it was given here, lately, and not spent."""
        if len(nonce) != NONCE_BYTES:
            return False
        made = self._sealed(nonce[: _HEAD.size])
        age_ms = (self._now_ms() - _HEAD.unpack_from(nonce)[0]) % (1 << 32)
        with self._lock:
            is_spent = nonce in self._spent
        return hmac.compare_digest(made, nonce) and age_ms < _LIFE_MS and not is_spent

    def spend(self, nonce: bytes) -> bool:
        """Return whether a good nonce was spent just now; False where another was faster.

        Also where more were spent within their life than are remembered.
        """
        now = self._clock()
        with self._lock:
            while self._spent:
                oldest = next(iter(self._spent))
                if now - self._spent[oldest] < _LIFE_MS / 1000:
                    break
                del self._spent[oldest]
            if nonce in self._spent or len(self._spent) >= _MOST_SPENT:
                return False
            self._spent[nonce] = now
        return True

    def _sealed(self, head: bytes) -> bytes:
        seal = hmac.digest(self._secret, head, "sha256")
        return head + seal[: NONCE_BYTES - _HEAD.size]

    def _now_ms(self) -> int:
        return int(self._clock() * 1000) % (1 << 32)
