"""The status page: plain HTML with its style inside, no script, everything escaped.

It is made of the documents that ``overlayctl`` shows too. What they hold was
written by others: node names come from the store.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from overlay.mesh.matrix import matrix, way_of
from overlay.mesh.svg import draw_matrix, draw_topology

Document = Mapping[str, Any]

REFRESH_S: Final = 10
_MOST_DRAWN: Final = 40  # nodes
_MOST_ROWS: Final = 500  # of a table: a page of some hundred kilobytes
_MOST_EVENTS: Final = 50

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2430;--dim:#5b6675;--line:#d8dee6;--page:#fff;--soft:#f4f6f9;
--ok:#1a7f4b;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9f0;--dim:#9aa7b8;--line:#323c4a;--page:#12171f;
--soft:#1a212c;--ok:#5fd39a;--bad:#ff8a80}}
body{font:14px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0 auto;
max-width:1100px;padding:24px}
h1{font-size:22px;margin:0 0 2px}h2{font-size:16px;margin:30px 0 8px}p{margin:4px 0}
.dim{color:var(--dim)}.ok{color:var(--ok)}.bad{color:var(--bad)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin:16px 0}
dl div{background:var(--soft);border-radius:8px;padding:8px 12px}
dt{color:var(--dim);font-size:12px}dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--dim);font-weight:600;font-size:12px}td.n{font-variant-numeric:tabular-nums}
.drawings{display:flex;flex-wrap:wrap;gap:24px}figure{margin:0}figcaption{color:var(--dim)}
svg{max-width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--ink)}
.h0 rect{fill:#bfe8cf}.h1 rect{fill:#d5edb5}.h2 rect{fill:#f3eba6}.h3 rect{fill:#f9d59a}
.h4 rect{fill:#f6b48f}.h5 rect{fill:#ee928c}.dead rect{fill:#b3261e}.none rect{fill:var(--soft)}
g[class^=h] text{fill:#1c2430}.dead text{fill:#fff}
.l.h0{stroke:#2fa866}.l.h1{stroke:#7fb53a}.l.h2{stroke:#c9b21c}.l.h3{stroke:#e0962a}
.l.h4{stroke:#dd6a36}.l.h5{stroke:#cf423a}.l.dead{stroke:#b3261e}.l.none{stroke:var(--line)}
.node{fill:#4a7bd0}.own{fill:#12408f;stroke:#9dbcf0;stroke-width:2}
"""


@dataclass(frozen=True, slots=True)
class Page:
    """What is shown; ``events`` is None where the agent keeps none."""

    status: Document
    peers: Sequence[Document]
    mesh: Document
    repairs: int
    events: Sequence[Document] | None = None


def render_page(page: Page) -> str:
    """Return the whole page."""
    node = page.status.get("node") or {}
    name = node.get("name") or "?"
    return "".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="refresh" content="{REFRESH_S}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(str(name))} - overlay</title><style>{_STYLE}</style></head><body>",
            *_head(page, str(name)),
            *_problems(page.status),
            *_drawings(page.mesh),
            *_peers(page.mesh),
            *_leases(page),
            *_events(page.events),
            "</body></html>\n",
        ]
    )


def _head(page: Page, name: str) -> Iterable[str]:
    status = page.status
    is_ready = bool(status.get("ready"))
    kind, word = ("ok", "ready") if is_ready else ("bad", "not ready")
    yield f"<h1>{escape(name)}</h1>"
    yield f'<p><b class="{kind}">{word}</b> <span class="dim">{_text(status.get("phase"))}</span>'
    yield "</p><dl>"
    underlay, store = status.get("underlay") or {}, status.get("store") or {}
    facts = {
        "subnet": status.get("subnet"),
        "peers": status.get("peers"),
        "backend": status.get("backend"),
        "egress": status.get("egress"),
        "MTU of pods": status.get("mtu"),
        "underlay": " ".join([str(underlay.get("device", "")), *underlay.get("addresses", [])]),
        "store": "connected" if store.get("connected") else "away",
        "drift repaired": page.repairs,
        "version": status.get("version"),
        "up": _duration(status.get("uptime_s")),
    }
    for key, value in facts.items():
        yield f"<div><dt>{escape(key)}</dt><dd>{_text(value)}</dd></div>"
    yield "</dl>"


def _problems(status: Document) -> Iterable[str]:
    texts = [str(reason) for reason in status.get("reasons") or ()]
    texts += [f"{p.get('about')}: {p.get('text')}" for p in status.get("problems") or ()]
    if texts:
        yield '<h2>Needs a look</h2><ul class="bad">'
        yield from (f"<li>{escape(text)}</li>" for text in texts[:_MOST_ROWS])
        yield "</ul>"


def _drawings(mesh: Document) -> Iterable[str]:
    yield "<h2>Mesh</h2>"
    if mesh.get("error"):
        yield f'<p class="bad">{_text(mesh["error"])}</p>'
    way = way_of(mesh)
    shown = matrix(mesh, way, _MOST_DRAWN)
    if len(shown.names) < 2:
        yield '<p class="dim">No peer with an agent of this fabric yet.</p>'
        return
    yield '<div class="drawings">'
    heat, circle = draw_matrix(shown, "round trips"), draw_topology(shown, "topology")
    for picture, text in (
        (heat, f"{way}: round trips in ms, from the node at the left to the node at the top"),
        (circle, "each half of a line is as its node measured it"),
    ):
        yield f"<figure>{picture}<figcaption>{text}</figcaption></figure>"
    yield "</div>"
    if shown.left_out:
        yield f'<p class="dim">{shown.left_out} nodes with better round trips are not drawn.</p>'


def _peers(mesh: Document) -> Iterable[str]:
    rows = []
    for peer in list(mesh["peers"])[:_MOST_ROWS]:
        ways = [word for way in ("overlay", "underlay") for word in _way(peer.get(way))]
        rows.append([peer["node"], peer["subnet"], peer["public"], *ways, peer.get("path_mtu")])
    yield "<h2>Peers</h2>"
    head = ("node", "subnet", "address", "overlay ms", "lost", "underlay ms", "lost", "path MTU")
    yield from _table(head, rows)
    if mesh.get("not_measured"):
        yield f'<p class="dim">{_text(mesh["not_measured"])} more are not in the sample.</p>'


def _way(record: Document | None) -> tuple[object, object]:
    if record is None:
        return None, None
    loss = record.get("loss")
    return record.get("rtt_ms"), None if loss is None else f"{loss:.0%}"


def _leases(page: Page) -> Iterable[str]:
    own = [page.status.get("subnet"), (page.status.get("node") or {}).get("name"), "this node", ""]
    rows = [own] if page.status.get("subnet") else []
    for peer in page.peers[:_MOST_ROWS]:
        kind = "flannel" if peer.get("flannel") else "held" if peer.get("held") else ""
        public = " ".join(map(str, peer.get("public") or ()))
        rows.append([peer.get("subnet"), peer.get("node"), public, kind])
    yield "<h2>Leases</h2>"
    yield from _table(("subnet", "node", "address", ""), rows)
    if len(page.peers) > _MOST_ROWS:
        yield f'<p class="dim">{len(page.peers) - _MOST_ROWS} more.</p>'


def _events(events: Sequence[Document] | None) -> Iterable[str]:
    if events is None:
        return
    rows = [[e.get("time"), e.get("kind"), e.get("text")] for e in events[-_MOST_EVENTS:]]
    yield "<h2>Recent events</h2>"
    yield from _table(("time", "event", ""), rows[::-1])


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterable[str]:
    yield '<div class="wide"><table><thead><tr>'
    yield from (f"<th>{escape(word)}</th>" for word in head)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>"
        for value in row:
            kind = ' class="n"' if isinstance(value, int | float) else ""
            yield f"<td{kind}>{_text(value)}</td>"
        yield "</tr>"
    yield "</tbody></table></div>"


def _text(value: object) -> str:
    return "-" if value is None or value == "" else escape(str(value))


def _duration(seconds: object) -> str:
    """Return a time in its two largest units.

    >>> _duration(93784), _duration(75), _duration(None)
    ('1 d 2 h', '1 min 15 s', '')
    """
    if not isinstance(seconds, int | float):
        return ""
    left = int(seconds)
    words: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not words):
            words.append(f"{count} {unit}")
    return " ".join(words[:2])
