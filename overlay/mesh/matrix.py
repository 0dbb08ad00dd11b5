"""Who reaches whom how well: the links of a ``mesh`` document, by two names.

Names come from the store, where anybody who may write there wrote them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One way from a node to another: the round trip in milliseconds and the lost share."""

    rtt_ms: float | None
    loss: float | None

    @property
    def is_dead(self) -> bool:
        """Return whether nothing came back."""
        return self.loss is not None and self.loss >= 1

    def __str__(self) -> str:
        if self.is_dead:
            return "lost"
        if self.rtt_ms is None:
            return "-"
        loss = f" {self.loss:.0%}" if self.loss else ""
        return f"{spelled_ms(self.rtt_ms)}{loss}"


UNKNOWN = Cell(None, None)


@dataclass(frozen=True, slots=True)
class Matrix:
    """``names`` in the order to show them; ``cells`` by (from, to), the unknown left out."""

    names: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    left_out: int = 0  # nodes that had no room

    def cell(self, origin: str, target: str) -> Cell:
        """Return what is known of one way."""
        return self.cells.get((origin, target), UNKNOWN)


def matrix(document: Mapping[str, Any], way: str, most: int) -> Matrix:
    """Return the matrix of ``way`` (``overlay``, ``underlay``): this node, then by name.

    Of more than ``most`` nodes those are shown that this one reaches worst.
    """
    cells = {}
    for link in document["links"]:
        found = Cell(link[f"{way}_ms"], link[f"{way}_loss"])
        if found != UNKNOWN:
            cells[link["from"], link["to"]] = found
    own = str(document["node"])
    others = {str(peer["node"]) for peer in document["peers"]} - {own}
    shown = sorted(others, key=lambda name: _badness(cells.get((own, name), UNKNOWN)))[: most - 1]
    names = (own, *sorted(shown))
    return Matrix(names, cells, len(others) - len(shown))


def _badness(cell: Cell) -> tuple[float, float]:
    return (-(cell.loss or 0.0), -(cell.rtt_ms or 0.0))


def spelled_ms(value: float) -> str:
    """Return milliseconds in three digits or so.

    >>> spelled_ms(0.2345), spelled_ms(2.345), spelled_ms(234.5)
    ('0.23', '2.3', '234')
    """
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def way_of(document: Mapping[str, Any]) -> str:
    """Return the way to show: ``overlay``, or ``underlay`` where the backend has no tunnel."""
    peers = document["peers"]
    return "overlay" if not peers or any(peer["overlay"] for peer in peers) else "underlay"
