"""Lines over a logarithmic axis, as SVG. Pure, without a library: the text alone.

Reads on white and on dark paper alike: mid-tones, no background.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH, _HEIGHT = 380, 250  # pixels of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 34  # around the axes
_COLORS: Final = ("#2f7ed8", "#d9822b", "#3f9b57", "#a05fc0", "#888888")
_INK: Final = "#808080"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name, and its points by rising x; x and y are above 0."""

    name: str
    points: tuple[tuple[float, float], ...]
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram, both axes logarithmic."""

    title: str
    lines: tuple[Line, ...]


def picture(panels: Sequence[Panel], columns: int = 2) -> str:
    """Return the panels in a grid as one SVG document."""
    rows = math.ceil(len(panels) / columns)
    width, height = columns * _WIDTH, rows * _HEIGHT
    body = "\n".join(
        f'<g transform="translate({i % columns * _WIDTH},{i // columns * _HEIGHT})">\n'
        f"{_panel(panel)}\n</g>"
        for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">\n'
        f"{body}\n</svg>\n"
    )


def decades(low: float, high: float) -> tuple[float, ...]:
    """Return the powers of ten from the last that is not above ``low`` to the first not below.

    >>> decades(0.3, 20)
    (0.1, 1.0, 10.0, 100.0)
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return tuple(float(f"1e{n}") for n in range(first, max(last, first + 1) + 1))


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines for point in line.points]
    across, up = (decades(min(v), max(v)) for v in zip(*points, strict=True))

    def place(x: float, y: float) -> tuple[float, float]:
        right = math.log10(x / across[0]) / math.log10(across[-1] / across[0])
        above = math.log10(y / up[0]) / math.log10(up[-1] / up[0])
        return (
            _LEFT + right * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - above * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_text(_LEFT, 16, panel.title, anchor="start", weight="bold")]
    for x in across:
        (left, bottom), (_, top) = place(x, up[0]), place(x, up[-1])
        parts.append(_stroke([(left, bottom), (left, top)], _INK, "0.4"))
        parts.append(_text(left, bottom + 16, f"{x:,g}"))
    for y in up:
        (left, bottom), (right, _) = place(across[0], y), place(across[-1], y)
        parts.append(_stroke([(left, bottom), (right, bottom)], _INK, "0.4"))
        parts.append(_text(left - 6, bottom + 4, f"{y:,g}", anchor="end"))
    for number, line in enumerate(panel.lines):
        color = _COLORS[number % len(_COLORS)]
        parts += _line(line, [place(x, y) for x, y in line.points], color)
        parts.append(_text(_LEFT + 8, _TOP + 12 + 14 * number, line.name, "start", color))
    return "\n".join(parts)


def _line(line: Line, places: Sequence[tuple[float, float]], color: str) -> Iterator[str]:
    yield _stroke(places, color, "2", ' stroke-dasharray="5 4"' if line.is_dashed else "")
    if not line.is_dashed:
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>'


def _stroke(places: Sequence[tuple[float, float]], color: str, width: str, style: str = "") -> str:
    listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return (
        f'<polyline points="{listed}" fill="none" stroke="{color}" stroke-width="{width}"{style}/>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "middle", color: str = _INK, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
