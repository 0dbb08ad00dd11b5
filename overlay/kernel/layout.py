"""Reads the messages of a dump at the places where the ones before had their attributes.

The kernel writes messages of one kind alike: to unpack the next one whole, and
to compare its attributes' headers with those of a message of the same length
that was walked, takes a fifth of walking it (November 2026). One that differs is walked.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from overlay.kernel.wire import ATTRIBUTE, KIND, head

U32: Final = "I"  # an attribute of four bytes, in the machine's order
_KEPT: Final = 32  # lengths of messages; the kernel's of one kind have a few


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where messages of one length have what: ``unpack`` yields head, and headers and values."""

    unpack: Callable[[bytes, int], tuple[Any, ...]]
    headers_of: Callable[[tuple[Any, ...]], Any]
    headers: Any
    noted: tuple[Any, ...]  # what stands for an attribute that is not there, and the noted ones
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]


class Layout:
    """Messages of one kind: a fixed part, and ``wanted`` attributes of any order.

    An attribute is wanted as bytes (``""``) or as a number (``U32``). Those
    ``noted`` are of interest only in being there. Any thread uses it.
    """

    def __init__(
        self,
        fixed: struct.Struct,
        wanted: Mapping[int, str],
        noted: Sequence[tuple[int, str]] = (),
    ) -> None:
        self._fixed, self._wanted, self._noted = fixed, wanted, noted
        self._count = len(fixed.unpack(bytes(fixed.size)))
        self._shapes: dict[int, _Shape] = {}

    def read(self, data: bytes, start: int, end: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the fixed part; and the wanted attributes in their order, then the noted ones.

        One that is not there is None, of several of a kind the last one counts;
        the noted ones are the words for them, joined. Raises ValueError where the
        message is cut off or an attribute is not as long as it must be.
        """
        shape = self._shapes.get(end - start)
        if shape is not None:
            parts = shape.unpack(data, start)
            if shape.headers_of(parts) == shape.headers:
                return parts[: self._count], shape.pick(parts + shape.noted)
        shape = self._walk(data, start, end)
        if len(self._shapes) < _KEPT:
            self._shapes.setdefault(end - start, shape)
        parts = shape.unpack(data, start)
        return parts[: self._count], shape.pick(parts + shape.noted)

    def _walk(self, data: bytes, start: int, end: int) -> _Shape:
        head(self._fixed, data, start, end)
        count = self._count
        form, headers = [self._fixed.format], []
        places: dict[int, int] = {}
        kinds: set[int] = set()
        at = start + self._fixed.size
        while at + ATTRIBUTE.size <= end:
            length, kind = ATTRIBUTE.unpack_from(data, at)
            if length < ATTRIBUTE.size or at + length > end:
                msg = f"attribute {kind} of {length} bytes, where there are {end - at}"
                raise ValueError(msg)
            headers.append(count)
            count += 1
            kinds.add(kind & KIND)
            value = self._form(kind & KIND, length - ATTRIBUTE.size)
            if value is not None:
                places[kind & KIND] = count
                count += 1
            rest = min(-length % 4, end - at - length)
            form.append(f"4s{value or f'{length - ATTRIBUTE.size}x'}{rest}x")
            at += length + (-length % 4)
        headers_of = itemgetter(*(headers or [0]))
        unpack = struct.Struct("".join(form)).unpack_from
        wanted = (places.get(kind, count) for kind in self._wanted)
        words = " ".join(word for kind, word in self._noted if kind in kinds)
        return _Shape(
            unpack,
            headers_of,
            headers_of(unpack(data, start)) if headers else object(),  # none: always walked
            (None, words),
            itemgetter(*wanted, count + 1),
        )

    def _form(self, kind: int, size: int) -> str | None:
        """Return how an attribute is unpacked, None for one that nobody wants."""
        form = self._wanted.get(kind)
        if form == U32:
            if size != struct.calcsize(U32):
                msg = f"attribute {kind} of {size} bytes, where four are expected"
                raise ValueError(msg)
            return form
        return None if form is None else f"{size}s"
