"""``overlayctl events`` against a ring on the real socket, and against files."""

import io
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from overlay.agent.control import ControlServer
from overlay.agent.event_call import event_calls
from overlay.agent.event_journal import Journal
from overlay.agent.events import Events
from overlay.cli import events as command
from overlay.cli.main import main
from overlay.cli.out import Output
from overlay.model.event import Filter, Kind

AT = datetime(2026, 8, 1, 12, tzinfo=UTC)


@pytest.fixture
def ring() -> Events:
    moments = iter(AT + timedelta(minutes=n) for n in range(1000))
    ring = Events(lambda: next(moments))
    ring.note(Kind.STORE_LOST, "refused\x1b[2J", code=14)
    ring.note(Kind.RULESET_APPLIED, "in step")
    ring.note(Kind.RULESET_APPLIED, "in step")
    ring.note(Kind.STORE_BACK, "the store answers again")
    return ring


@pytest.fixture
def path(ring: Events, tmp_path: Path) -> Iterator[Path]:
    ring.flush()
    server = ControlServer(tmp_path / "agent.sock", event_calls(ring))
    yield tmp_path / "agent.sock"
    server.close()


LOST = "2026-08-01T12:00:00.000Z store-lost      refused^[[2J\n"
APPLIED = "2026-08-01T12:02:00.000Z ruleset-applied in step (2 times)\n"
BACK = "2026-08-01T12:03:00.000Z store-back      the store answers again\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], LOST + APPLIED + BACK),
        (["--kind", "store"], LOST + BACK),
        (["--kind", "store-back,ruleset"], APPLIED + BACK),
        (["--kind", "ruleset", "--kind", "store-lost"], LOST + APPLIED),
        (["--since", "2026-08-01T14:03:00+02:00"], BACK),
        (["--last", "1"], BACK),
        (["--kind", "pod"], ""),
    ],
)
def test_lines_for_people(
    path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["events", "--socket", str(path), *words], environment={}) == 0
    assert capsys.readouterr().out == said


def test_json_lines_for_programs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", "--socket", str(path), "-o", "json"], environment={}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0]) == {
        "number": 1,
        "time": "2026-08-01T12:00:00.000Z",
        "kind": "store-lost",
        "text": "refused\x1b[2J",
        "times": 1,
        "facts": {"code": 14},
    }
    assert len(lines) == 3


def test_files_say_the_same_as_the_agent(
    ring: Events, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path, most_bytes=200)
    for event in ring.flush():
        journal.append([event])
    assert (tmp_path / "events.jsonl.1").exists()
    assert main(["events", "--state-dir", str(tmp_path), "--last", "2"], environment={}) == 0
    assert capsys.readouterr().out == APPLIED + BACK


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "pods"], "there are agent, config"),
        (["--since", "yesterday"], "write a duration such as 10m"),
        (["--since", "0s"], "write a duration such as 10m"),
        (["--last", "-1"], "--last -1"),
        (["--state-dir", "/nonexistent"], "no events.jsonl here"),
        (["--state-dir", "/proc", "--follow"], "--follow needs the agent"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["events", *words], environment={}) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_since_is_counted_from_now() -> None:
    assert command._since("1h30m", AT) == "2026-08-01T10:30:00.000Z"
    assert command._since("", AT) == ""


def test_no_agent_is_status_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", "--socket", str(tmp_path / "none")], environment={}) == 3
    assert "is overlayd running" in capsys.readouterr().err


class EndError(Exception):
    """Ends what would follow for ever."""


def test_follower_waits_for_an_agent_and_takes_up_where_it_was(
    path: Path, ring: Events, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring.note(Kind.POD_ATTACHED, "one")
    ring.flush()
    away = tmp_path / "away.sock"
    tries = 0

    def pause(_seconds: float) -> None:
        nonlocal tries
        tries += 1
        if tries == 4:
            ring.note(Kind.POD_ATTACHED, "two")
            ring.flush()
        if tries in {3, 4}:
            away.symlink_to(path)
        elif tries > 4:
            raise EndError

    out = Output("table", environment={})
    unlinking = out.event

    def event(text: str, document: object, colour: str = "") -> None:
        unlinking(text, document, colour)
        away.unlink(missing_ok=True)

    out.event = event  # type: ignore[method-assign]  # the agent goes when it has answered
    with pytest.raises(EndError):
        command.follow(away, Filter(), 4, out, pause)
    shown = capsys.readouterr()
    assert re.findall("pod-attached +(.*)", shown.out) == ["one", "two"]
    assert shown.err.count("waiting for it") == 3, "said once for each time that it is away"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "has_colour"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colour_is_for_terminals(
    stream: io.StringIO, environment: dict[str, str], has_colour: bool
) -> None:
    Output("table", stream, environment).event("a\x1bb", {}, "yellow")
    line = "a^[b"
    assert stream.getvalue() == (f"\x1b[33m{line}\x1b[0m\n" if has_colour else f"{line}\n")


def test_tables_have_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(os, "environ", {**os.environ, "NO_COLOR": "1", "TERM": "xterm"})
    Output("table", stream).table(("SUBNET",), [["10.244.3.0/24"]], {})
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", stream.getvalue())
    assert "10.244.3.0/24" in stream.getvalue()
