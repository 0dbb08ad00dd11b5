"""The fabric's key: whoever may read the store may ask the agents, and nobody else.

It stands under ``PREFIX/fabric-key`` as 64 hexadecimal digits; for a while after
it was changed the one before stands under ``PREFIX/fabric-key-previous`` and
counts as well (docs/decisions/0008). No representation of it shows a digit.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from overlay.model.errors import OverlayError

FABRIC_KEY_BYTES: Final = 32  # as many as HMAC-SHA256 gives (RFC 2104, section 3)
_SPELLING: Final = re.compile(rb"[0-9a-f]{64}\n?\Z")


class FabricKeyError(OverlayError):
    """The fabric's key in the store cannot be read. The text has nothing of it."""


@dataclass(frozen=True, slots=True)
class FabricKeys:
    """The keys that count at one revision: the newest, and the one before it while it lasts.

    ``error`` says why there is no newest one although something stands in its place.
    """

    newest: bytes | None = field(default=None, repr=False)
    previous: bytes | None = field(default=None, repr=False)
    error: str | None = None

    @property
    def counting(self) -> tuple[bytes, ...]:
        """Return all keys that count, the newest first."""
        return tuple(key for key in (self.newest, self.previous) if key is not None)


NO_KEYS: Final = FabricKeys()


def parse_fabric_key(value: bytes) -> bytes:
    """Return the key that a value of the store holds. Raises FabricKeyError."""
    if not _SPELLING.match(value):
        msg = (
            f"fabric-key: {len(value)} bytes that are no 64 hexadecimal digits; write a new one "
            "with `overlayctl network rotate-key`"
        )
        raise FabricKeyError(msg)
    return bytes.fromhex(value.decode())


def format_fabric_key(key: bytes) -> bytes:
    """Return the value that ``parse_fabric_key`` reads."""
    return key.hex().encode()
