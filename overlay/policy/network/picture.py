"""Who reaches whom, drawn: a circle of pods with an arrow for what is open (SVG 1.1).

All text from outside is escaped here, once. The drawing stands alone: it has
its style with it, for light and dark pages.
"""

from collections.abc import Iterable, Sequence
from html import escape
from math import cos, hypot, pi, sin
from typing import Final

from overlay.model.netpol import PodKey
from overlay.policy.network.reachability import Group, Reach, shown_ports

_RADIUS_LEAST: Final = 120  # pixels, as all lengths here
_ROOM: Final = 34  # of the circle, for each group
_MARGIN: Final = 190
_DOT: Final = 7
_LONGEST: Final = 28  # letters of a name
_HUES: Final = 8  # colors of namespaces
_STYLE: Final = (
    "svg{font:12px sans-serif;fill:#1b1f24;background:#fff}"
    "line{stroke:#57606a;stroke-width:1.2;opacity:.65}line:hover{stroke-width:3;opacity:1}"
    ".part{stroke-dasharray:5 3}#tip path,#tip{fill:#57606a}"
    + "".join(f".n{n}{{fill:hsl({n * 360 // _HUES} 60% 45%)}}" for n in range(_HUES))
    + "@media(prefers-color-scheme:dark){svg{fill:#e6edf3;background:#0d1117}"
    "line{stroke:#8b949e}#tip path{fill:#8b949e}}"
)


def draw(found: Sequence[Group], reached: Iterable[Reach], label: str) -> str:
    """Return the drawing; an arrow is dashed where some ports are open and others not."""
    radius = max(_RADIUS_LEAST, _ROOM * len(found) / (2 * pi))
    side = 2 * (radius + _MARGIN)
    middle = side / 2
    spaces = sorted({group.pods[0].namespace for group in found})
    places: dict[PodKey, tuple[float, float]] = {}
    for number, group in enumerate(found):
        angle = 2 * pi * number / max(1, len(found)) - pi / 2
        places[group.pods[0].key] = (middle + radius * cos(angle), middle + radius * sin(angle))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {side:.0f} {side:.0f}" width="{side:.0f}" height="{side:.0f}">'
        f"<style>{_STYLE}</style><title>{escape(label)}</title>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    parts = [
        _arrow(places[reach.source.pods[0].key], places[reach.target.pods[0].key], reach)
        for reach in reached
        if reach.source != reach.target
    ]
    for group in found:
        x, y = places[group.pods[0].key]
        color = spaces.index(group.pods[0].namespace) % _HUES
        names = escape(", ".join("/".join(pod.key) for pod in group.pods[:20]))
        anchor = "start" if x >= middle else "end"
        beside = x + (_DOT + 5 if x >= middle else -_DOT - 5)
        parts.append(
            f'<circle class="n{color}" cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}">'
            f"<title>{names}</title></circle>"
            f'<text x="{beside:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">'
            f"{escape(_short(group.shown))}</text>"
        )
    return "".join([head, *parts, "</svg>\n"])


def _arrow(start: tuple[float, float], end: tuple[float, float], reach: Reach) -> str:
    length = hypot(end[0] - start[0], end[1] - start[1]) or 1.0
    step = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    # Two arrows between the same two lie side by side.
    aside = (-step[1] * 3, step[0] * 3)
    x1, y1 = (start[n] + step[n] * (_DOT + 2) + aside[n] for n in (0, 1))
    x2, y2 = (end[n] - step[n] * (_DOT + 3) + aside[n] for n in (0, 1))
    ports = shown_ports(reach.ports, reach.over)
    kind = "" if ports == "TCP, UDP, SCTP" else ' class="part"'
    about = escape(f"{reach.source.shown} to {reach.target.shown}: {ports}")
    return (
        f'<line{kind} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'marker-end="url(#tip)"><title>{about}</title></line>'
    )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
