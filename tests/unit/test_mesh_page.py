"""The status page and its drawings: everything escaped, and well-formed."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.agent.page import may_see
from overlay.mesh.matrix import Cell, matrix
from overlay.mesh.page import Page, render_page
from overlay.mesh.svg import draw_matrix, draw_topology, heat

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def mesh(names: list[str], **more: Any) -> dict[str, Any]:
    own, *others = names
    record = {"rtt_ms": 0.4, "loss": 0.0, "silent": False}
    return {
        "node": own,
        "error": None,
        "peers": [
            {"node": n, "subnet": "10.244.1.0/24", "public": "192.0.2.1", "overlay": record,
             "underlay": None, "path_mtu": 1500}
            for n in others
        ],
        "not_measured": 0,
        "links": [
            {"from": a, "to": b, "overlay_ms": 0.2 + i, "overlay_loss": 0.0,
             "underlay_ms": 0.1, "underlay_loss": 0.0}
            for i, a in enumerate(names) for b in names if a != b
        ],
        **more,
    }  # fmt: skip


def page(name: str, document: Mapping[str, Any], events: Any = None) -> str:
    status = {
        "node": {"id": name, "name": name}, "version": "1", "phase": "running", "ready": True,
        "subnet": "10.244.0.0/24", "peers": 1, "reasons": [], "uptime_s": 75.0,
        "problems": [{"about": name, "text": name}], "store": {"connected": True},
        "underlay": {"device": "eth0", "addresses": ["192.0.2.9"]},
    }  # fmt: skip
    peers = [{"subnet": "10.244.1.0/24", "node": name, "public": [name], "flannel": True}]
    return render_page(Page(status, peers, document, 7, events))


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_names_from_the_store_are_text_wherever_they_stand() -> None:
    events = [{"time": EVIL, "kind": EVIL, "text": EVIL}]
    text = page(EVIL, mesh([EVIL, EVIL + "2", "n3"], error=EVIL), events)
    tags = Tags(text)
    assert not tags.found & {"script", "img", "iframe", "object", "a"}
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert text.count("&lt;script&gt;") >= 12


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6, unique=True))
def test_drawings_are_well_formed_whatever_the_names(names: list[str]) -> None:
    # What XML cannot say at all, an HTML parser takes.
    names = [
        re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", n) for n in names
    ]
    shown = matrix(mesh(names), "overlay", 40)
    for drawing in (draw_matrix(shown, names[0]), draw_topology(shown, names[0])):
        assert ET.fromstring(drawing).tag.endswith("svg")


def test_matrix_has_a_cell_for_each_way() -> None:
    shown = matrix(mesh(["n1", "n2", "n3"]), "overlay", 40)
    root = ET.fromstring(draw_matrix(shown, "m"))
    assert len(root.findall("{http://www.w3.org/2000/svg}g")) == 6
    assert draw_topology(shown, "t").count("<line") == 6


def test_of_too_many_nodes_the_worst_are_drawn() -> None:
    names = [f"n{number:03}" for number in range(200)]
    document = mesh(names)
    bad = next(link for link in document["links"] if (link["from"], link["to"]) == ("n000", "n150"))
    bad["overlay_loss"] = 1.0
    shown = matrix(document, "overlay", 40)
    assert len(shown.names) == 40
    assert shown.names[0] == "n000"
    assert "n150" in shown.names
    assert shown.left_out == 160
    assert len(page("n000", document)) < 500_000


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (Cell(0.2, 0.0), "h0"),
        (Cell(2.0, 0.0), "h2"),
        (Cell(500, 0.0), "h5"),
        (Cell(0.2, 1.0), "dead"),
        (Cell(None, None), "none"),
    ],
)
def test_heat(cell: Cell, kind: str) -> None:
    assert heat(cell) == kind


def test_page_says_what_is_needed_without_a_script() -> None:
    text = page("n1", mesh(["n1", "n2"]), [{"time": "12:00", "kind": "repair", "text": "route"}])
    for words in ("<title>n1 - overlay</title>", "drift repaired", "<dd>7</dd>", "1 min 15 s",
                  "Recent events", "flannel", "<svg"):  # fmt: skip
        assert words in text
    assert "Recent events" not in page("n1", mesh(["n1", "n2"]))
    assert "No peer" in page("n1", mesh(["n1"]))


@pytest.mark.parametrize(
    ("client", "host", "verdict"),
    [
        ("127.0.0.1", "127.0.0.1:9470", True),
        ("::1", "localhost", True),
        ("127.0.0.1", "attacker.example:9470", False),
        ("127.0.0.1", None, False),
        ("127.0.0.1", "192.0.2.1:9470", False),
        ("192.0.2.1", "localhost:9470", False),
        ("fe80::1%eth0", "localhost", False),
    ],
)
def test_page_is_for_this_node_alone(client: str, host: str | None, verdict: bool) -> None:
    assert may_see(client, host) is verdict
