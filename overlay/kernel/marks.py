"""What a dump is told by: equal marks are equal dumps, found without decoding one of them.

To decode the dump of 1,000 peers takes 15 ms of CPU, to mark it 3 ms
(November 2026). Ages, which neighbors and forwarding entries carry, count for
nothing.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

from overlay.kernel.wire import Message, decoder

_NDMSG: Final = 12  # bytes of struct ndmsg, linux/neighbour.h
_CACHEINFO: Final = b"\x14\x00\x03\x00"  # the head of NDA_CACHEINFO: 20 bytes, type 3
_CACHEINFO_BYTES: Final = 20
_STATE: Final = 8  # where struct ndmsg has it
_PERMANENT: Final = b"\x80\x00"
_DIGEST: Final = 16  # bytes


class Mark:
    """Grows by what a dump consists of, in its order."""

    def __init__(self) -> None:
        self._seen = hashlib.blake2b(digest_size=_DIGEST)

    @property
    def digest(self) -> bytes:
        """Return what tells it from others."""
        return self._seen.digest()

    def add(self, fact: object) -> None:
        """Add what prints alike where it is alike."""
        self._seen.update(repr(fact).encode(errors="backslashreplace"))

    def add_whole(self, messages: Iterable[Message]) -> None:
        """Add messages with all that is in them."""
        self._seen.update(b"".join([data[start:end] for data, start, end in messages]))

    @decoder
    def add_neighbors(self, messages: Iterable[Message]) -> None:
        """Add the permanent ones of messages of neighbors; the kernel's own come and go."""
        self.add_entries(
            each
            for each in messages
            if each[0][each[1] + _STATE : each[1] + _STATE + 2] == _PERMANENT
        )

    @decoder
    def add_entries(self, messages: Iterable[Message]) -> None:
        """Add messages of neighbors or forwarding entries without their ages."""
        at = 0  # where the last message had its ages; the next one has them there as a rule
        parts: list[bytes] = []
        for data, start, end in messages:
            if data[start + at : start + at + 4] != _CACHEINFO:
                at = _ages(data, start, end)
            parts.append(data[start : start + at])
            parts.append(data[start + at + _CACHEINFO_BYTES : end])
        self._seen.update(b"".join(parts))


def _ages(data: bytes, start: int, end: int) -> int:
    """Return where in a message its ages are; its length where it has none."""
    at = _NDMSG
    while start + at + 4 <= end:
        if data[start + at : start + at + 4] == _CACHEINFO:
            return at
        length = int.from_bytes(data[start + at : start + at + 2], "little")
        if length < 4:
            break
        at += length + (-length % 4)
    return end - start
