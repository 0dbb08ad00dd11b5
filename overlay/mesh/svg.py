"""Drawings as SVG text (SVG 1.1): the matrix as a heat map, the topology as a circle.

All text from outside is escaped here, once. Colors are classes of the page's
style sheet, so that both light and dark pages can be read.
"""

from collections.abc import Iterator
from html import escape
from math import cos, log10, pi, sin
from typing import Final

from overlay.mesh.matrix import Cell, Matrix, spelled_ms

_CELL: Final = 46  # pixels, as all lengths here
_LINE: Final = 26
_LETTER: Final = 6.6
_LONGEST: Final = 18  # letters of a name
_RADIUS: Final = 150
_WITH_NUMBERS: Final = 16  # nodes; more, and the cells are too small for text
_ALL_LINES: Final = 24  # nodes; more, and only this node's own links are drawn
# Upper bounds in milliseconds of the heat classes h0 to h5, a decade in two steps.
_HEAT_MS: Final = (0.3, 1.0, 3.0, 10.0, 30.0)


def heat(cell: Cell) -> str:
    """Return the class of a cell: ``h0`` (quick) to ``h5``, ``dead``, or ``none``."""
    if cell.is_dead:
        return "dead"
    if cell.rtt_ms is None:
        return "none"
    return f"h{sum(cell.rtt_ms > bound for bound in _HEAT_MS)}"


def draw_matrix(shown: Matrix, label: str) -> str:
    """Return the matrix: from the node at the left to the node at the top."""
    count = len(shown.names)
    is_numbered = count <= _WITH_NUMBERS
    side = _CELL if is_numbered else 16
    line = _LINE if is_numbered else 16
    left = _label_width(shown.names)
    top = left * 0.75 + 12
    width, height = left + count * side + left * 0.5 + 8, top + count * line + 4
    parts = list(_open(width, height, label))
    for column, name in enumerate(shown.names):
        x = left + column * side + side / 2
        turn = f'transform="rotate(-45 {x:.1f} {top - 6:.1f})"'
        parts.append(_text(x, top - 6, name, extra=turn))
    for row, origin in enumerate(shown.names):
        y = top + row * line
        parts.append(_text(left - 6, y + line / 2 + 4, origin, anchor="end"))
        for column, target in enumerate(shown.names):
            x = left + column * side
            if origin == target:
                continue
            cell = shown.cell(origin, target)
            title = escape(f"{origin} to {target}: {described(cell)}")
            parts.append(
                f'<g class="{heat(cell)}"><title>{title}</title>'
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{side - 2}" height="{line - 2}" rx="3"/>'
            )
            if is_numbered:
                parts.append(
                    _text(x + side / 2 - 1, y + line / 2 + 3, _short(cell), anchor="middle")
                )
            parts.append("</g>")
    return "".join([*parts, "</svg>"])


def draw_topology(shown: Matrix, label: str) -> str:
    """Return the nodes on a circle, this one first and at the top, and the links that are known."""
    names, own = shown.names, shown.names[0]
    margin = _label_width(names) + 16
    width, height = 2 * (_RADIUS + margin), 2 * _RADIUS + 72
    middle = (width / 2, height / 2)
    places = {}
    for number, name in enumerate(names):
        angle = 2 * pi * number / len(names) - pi / 2
        places[name] = (middle[0] + _RADIUS * cos(angle), middle[1] + _RADIUS * sin(angle))
    parts = list(_open(width, height, label))
    for (origin, target), cell in sorted(shown.cells.items()):
        if origin not in places or target not in places:
            continue
        if own in {origin, target} or len(names) <= _ALL_LINES:
            parts.append(_link(places[origin], places[target], f"{origin} to {target}", cell))
    for name, (x, y) in places.items():
        kind, radius = ("own", 9) if name == own else ("node", 6)
        title = escape(name)
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{title}</title></circle>"
        )
        parts.append(_name_beside(name, (x, y), middle))
    return "".join([*parts, "</svg>"])


def described(cell: Cell) -> str:
    """Return a cell in words."""
    if cell.is_dead:
        return "no answer"
    if cell.rtt_ms is None:
        return "not measured"
    return f"{spelled_ms(cell.rtt_ms)} ms, {cell.loss or 0:.0%} lost"


def _short(cell: Cell) -> str:
    return "lost" if cell.is_dead else "" if cell.rtt_ms is None else spelled_ms(cell.rtt_ms)


def _link(start: tuple[float, float], end: tuple[float, float], about: str, cell: Cell) -> str:
    # Half of the way: the other half is the other direction's.
    half = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    thick = 2.5 if cell.rtt_ms is None else max(0.8, 2.5 - 0.6 * log10(max(cell.rtt_ms, 0.1) * 10))
    dash = ' stroke-dasharray="4 3"' if cell.loss else ""
    return (
        f'<line class="l {heat(cell)}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" '
        f'x2="{half[0]:.1f}" y2="{half[1]:.1f}" stroke-width="{thick:.1f}"{dash}>'
        f"<title>{escape(about)}: {escape(described(cell))}</title></line>"
    )


def _name_beside(name: str, place: tuple[float, float], middle: tuple[float, float]) -> str:
    x, y = place
    if abs(x - middle[0]) < 1:
        return _text(x, y + (-14 if y < middle[1] else 22), name, anchor="middle")
    is_right = x > middle[0]
    return _text(x + (13 if is_right else -13), y + 4, name, anchor="start" if is_right else "end")


def _open(width: float, height: float, label: str) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", extra: str = "") -> str:
    shown = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(shown)}</text>'


def _label_width(names: tuple[str, ...]) -> float:
    longest = max(len(name) for name in names)
    return min(longest, _LONGEST) * _LETTER + 12
