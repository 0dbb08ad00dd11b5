"""Tables as text: Markdown that is readable on a terminal, and where it stands in a document.

Pure: the document is a string.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from overlay.model.errors import OverlayError

_BEGIN: Final = "<!-- bench {name} -->"
_END: Final = "<!-- end {name} -->"


class MarkerError(OverlayError):
    """A document has no place for a table."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a bench found: rows of text for people, records with every sample for programs."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[Mapping[str, Any], ...] = field(default=())
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the table as Markdown, its columns aligned, the notes below."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            _line(self.columns, widths),
            "|" + "|".join("-" * (width + 2) for width in widths) + "|",
            *(_line(row, widths) for row in self.rows),
        ]
        return "\n".join(lines) + "".join(f"\n\n{note}" for note in self.notes)


def rewritten(text: str, name: str, body: str) -> str:
    """Return ``text`` with ``body`` between the markers of ``name``; repeating it is safe.

    Raises MarkerError where the markers are not there, once each and in order.
    """
    begin, end = _BEGIN.format(name=name), _END.format(name=name)
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if text.count(begin) != 1 or len(pattern.findall(text)) != 1:
        msg = f"--write: no place for {name}; put the lines `{begin}` and `{end}` there"
        raise MarkerError(msg)
    return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", text)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"
