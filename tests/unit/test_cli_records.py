"""What changes between two views, and what a terminal gets to see."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from overlay.cli.lease_records import TimeLeft, changes, record, row
from overlay.cli.out import Output, printable
from overlay.model.lease import Lease, LeaseView, parse_lease

ONE = parse_lease(
    "10.244.1.0-24", b'{"PublicIP":"192.0.2.1","BackendType":"vxlan"}', mod_revision=2, lease_id=7
)
TWO = parse_lease("10.244.2.0-24", b'{"PublicIP":"192.0.2.2","BackendType":"vxlan"}')


def view(*leases: Lease) -> LeaseView:
    return LeaseView(9, {lease.subnet.key: lease for lease in leases})


MOVED = replace(
    ONE, attributes=parse_lease("10.244.1.0-24", b'{"PublicIP":"192.0.2.9","BackendType":"vxlan"}')
    .attributes,
)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "events"),
    [
        pytest.param(None, view(ONE, TWO), "held 1 held 2", id="first view"),
        pytest.param(view(), view(ONE), "added 1", id="added"),
        pytest.param(view(ONE, TWO), view(TWO), "removed 1", id="removed"),
        pytest.param(view(ONE), view(MOVED), "changed 1", id="new address"),
        pytest.param(view(ONE), view(replace(ONE, mod_revision=5)), "", id="renewed only"),
        pytest.param(view(ONE), view(replace(ONE, lease_id=0)), "changed 1", id="made permanent"),
        pytest.param(view(ONE), view(TWO), "removed 1 added 2", id="two at once"),
    ],
)
def test_changes(before: LeaseView | None, after: LeaseView, events: str) -> None:
    found = changes(before, after)
    told = [f"{c.event} {str(c.lease.subnet).split('.')[2]}" for c in found]
    assert " ".join(told) == events


def test_end_of_a_lease_is_a_time_of_day() -> None:
    now = datetime(2026, 8, 1, 23, 59, 30, tzinfo=UTC)
    assert record(ONE, TimeLeft(60, now))["expires_at"] == "2026-08-02T00:00:30Z"
    assert row(record(TWO, TimeLeft(None, now)))[-1] == "never"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param("a\x1b]0;x\x07", "a^[]0;x^G", id="escape sequence"),
        pytest.param("a\nb", "a^Jb", id="line break"),
        pytest.param("a\u202eb", "a\\u202eb", id="direction override"),
        pytest.param("[red]n1[/red]", "[red]n1[/red]", id="rich's markup is text"),
        pytest.param(0, "0", id="zero is something"),
        pytest.param([], "-", id="nothing"),
    ],
)
def test_what_others_wrote_cannot_steer_a_terminal(value: object, text: str) -> None:
    assert printable(value) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_gets_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    Output("table", stream).table(("NODE", "PUBLIC"), [["[b]n1[/b]", "192.0.2.1"]], {})
    assert "[b]n1[/b]" in stream.getvalue()
    assert "192.0.2.1" in stream.getvalue()


def test_events_are_json_lines() -> None:
    stream = io.StringIO()
    out = Output("json", stream)
    out.event("", {"event": "held"})
    out.event("", {"event": "added"})
    assert stream.getvalue() == '{"event":"held"}\n{"event":"added"}\n'
