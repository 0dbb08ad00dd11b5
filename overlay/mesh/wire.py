"""The datagrams by which agents measure: a probe, and the echo of it.

Big-endian: ``OVM1``, kind, path, the size in bytes that the echo shall have (0:
as it comes), the number of rows, the sender's and the target's tag, the nonce,
the seal over all the rest, rows, and zeros up to the size wanted. A row is what
the echo's sender has measured of a third node, so that every node learns the
whole matrix without asking more.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from overlay.mesh.seal import NONCE_BYTES, SEAL_BYTES, TAG_BYTES, fitting_key, seal
from overlay.model.errors import OverlayError

_MAGIC: Final = b"OVM1"
_HEAD: Final = struct.Struct(f">4sBBHH{TAG_BYTES}s{TAG_BYTES}s{NONCE_BYTES}s{SEAL_BYTES}s")
_ROW: Final = struct.Struct(f">{TAG_BYTES}sIIHH")
_SEALED_FROM: Final = _HEAD.size
_NOT_KNOWN_US: Final = 0xFFFFFFFF
_NOT_KNOWN_LOSS: Final = 0xFFFF
# An echo with them fits any IPv4 path (RFC 791: 576 bytes with its headers).
MOST_ROWS: Final = 20
LEAST_BYTES: Final = _HEAD.size
MOST_BYTES: Final = 65535


class Kind(IntEnum):
    """Question and answer."""

    PROBE = 1
    ECHO = 2


class Path(IntEnum):
    """Which way a datagram took, and what it is for."""

    OVERLAY = 1
    UNDERLAY = 2
    MTU_OUT = 3  # the probe has the size in question
    MTU_BACK = 4  # the echo has it


class MessageError(OverlayError):
    """A datagram is no message of this fabric; ``reason`` is one word for a metric."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"mesh: {reason}")


@dataclass(frozen=True, slots=True)
class Row:
    """What a node measured of another: round trips in seconds and lost shares, None unknown."""

    tag: bytes
    overlay_s: float | None = None
    underlay_s: float | None = None
    overlay_loss: float | None = None
    underlay_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One datagram. ``size`` is what the echo shall have, in bytes of UDP payload."""

    kind: Kind
    path: Path
    sender: bytes
    target: bytes
    nonce: bytes
    size: int = 0
    rows: tuple[Row, ...] = ()


def pack(message: Message, key: bytes, length: int = 0) -> bytes:
    """Return the datagram under ``key``, with zeros up to ``length`` bytes where it is shorter."""
    body = b"".join(_packed(row) for row in message.rows[:MOST_ROWS])
    body += bytes(max(0, length - LEAST_BYTES - len(body)))
    head = (
        _MAGIC,
        message.kind,
        message.path,
        message.size,
        min(len(message.rows), MOST_ROWS),
        message.sender,
        message.target,
        message.nonce,
    )
    bare = _HEAD.pack(*head, bytes(SEAL_BYTES))
    return _HEAD.pack(*head, seal(key, bare, body)) + body


def unpack(data: bytes, keys: Sequence[bytes], own: bytes) -> tuple[Message, bytes]:
    """Return the message in ``data`` for the node ``own``, and the key of ``keys`` that it has.

    Raises MessageError; nothing of what has no good seal is looked at.
    """
    if len(data) < LEAST_BYTES or data[:4] != _MAGIC:
        raise MessageError("foreign")
    fields = _HEAD.unpack_from(data)
    _magic, kind, path, size, count, sender, target, nonce, given = fields
    bare = data[: _SEALED_FROM - SEAL_BYTES] + bytes(SEAL_BYTES)
    body = data[_SEALED_FROM:]
    key = fitting_key(keys, given, bare, body)
    if key is None:
        raise MessageError("unsealed")
    if target != own:
        raise MessageError("misdelivered")
    try:
        rows = tuple(_row(*_ROW.unpack_from(body, i * _ROW.size)) for i in range(count))
        return Message(Kind(kind), Path(path), sender, target, nonce, size, rows), key
    except (ValueError, struct.error) as exc:
        raise MessageError("newer") from exc


def _packed(row: Row) -> bytes:
    def time(value: float | None) -> int:
        return _NOT_KNOWN_US if value is None else min(int(value * 1e6), _NOT_KNOWN_US - 1)

    def loss(value: float | None) -> int:
        return _NOT_KNOWN_LOSS if value is None else round(value * 1000)

    return _ROW.pack(
        row.tag,
        time(row.overlay_s),
        time(row.underlay_s),
        loss(row.overlay_loss),
        loss(row.underlay_loss),
    )


def _row(tag: bytes, overlay: int, underlay: int, lost: int, lost_under: int) -> Row:
    def time(value: int) -> float | None:
        return None if value == _NOT_KNOWN_US else value / 1e6

    def loss(value: int) -> float | None:
        return None if value == _NOT_KNOWN_LOSS else min(value / 1000, 1.0)

    return Row(tag, time(overlay), time(underlay), loss(lost), loss(lost_under))
