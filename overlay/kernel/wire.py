"""Netlink on the wire: headers and attributes, without a socket.

Sources: linux/netlink.h, RFC 3549.
"""

import functools
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from overlay.kernel.base import KernelError

P = ParamSpec("P")
T = TypeVar("T")

HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
KIND: Final = 0x3FFF  # of an attribute's type: less NLA_F_NESTED, NLA_F_NET_BYTEORDER


class MessageError(KernelError):
    """A netlink message is cut off, or is none at all."""


def decoder(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function``, which takes messages apart, so that MessageError alone leaves it."""

    @functools.wraps(function)
    def decode(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        # OverflowError: an error number that is none.
        except (struct.error, ValueError, IndexError, OverflowError) as exc:
            msg = f"rtnetlink: a message cannot be read: {exc}"
            raise MessageError(msg) from exc

    return decode


Message: TypeAlias = tuple[bytes, int, int]  # a buffer, and where a message's body starts and ends


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one netlink attribute, padded to four bytes."""
    length = 4 + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length % 4)


def attributes(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """Return the attributes between two offsets; the last one of a kind wins.

    Raises ValueError for one that reaches beyond ``end``.
    """
    found: dict[int, bytes] = {}
    while start + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            msg = f"attribute {kind} of {length} bytes, where there are {end - start}"
            raise ValueError(msg)
        found[kind & KIND] = data[start + 4 : start + length]
        start += length + (-length % 4)
    return found


def attribute_of(wanted: int, data: bytes, start: int, end: int) -> bytes | None:
    """Return the first attribute of a kind between two offsets, None where there is none.

    Raises ValueError as ``attributes`` does, and looks no further than it must.
    """
    while start + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            msg = f"attribute {kind} of {length} bytes, where there are {end - start}"
            raise ValueError(msg)
        if kind & KIND == wanted:
            return data[start + 4 : start + length]
        start += length + (-length % 4)
    return None


def head(layout: struct.Struct, data: bytes, start: int, end: int) -> tuple[Any, ...]:
    """Return the fixed part that a message begins with. Raises ValueError where it is cut off."""
    if end - start < layout.size:
        msg = f"{end - start} bytes, where {layout.size} are the least"
        raise ValueError(msg)
    return layout.unpack_from(data, start)


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes, int, int]]:
    """Yield (type, flags, sequence, buffer, start, end) for the messages of one datagram.

    Raises MessageError for one that is cut off.
    """
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _port = HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > len(data):
            msg = f"rtnetlink: a message of {length} bytes, where there are {len(data) - offset}"
            raise MessageError(msg)
        yield kind, flags, sequence, data, offset + 16, offset + length
        offset += length + (-length % 4)
