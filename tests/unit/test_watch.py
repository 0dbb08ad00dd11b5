"""``--watch``: drawn over on a terminal, appended elsewhere, until interrupted."""

import io
import sys
from argparse import Namespace
from collections.abc import Callable

import pytest

from overlay.cli.main import main, parser
from overlay.cli.out import Output
from overlay.cli.watch import frame, watched
from overlay.model.errors import OverlayError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rounds(count: int) -> tuple[Callable[[Namespace], int], Callable[[float], None]]:
    """Return a command that fails in its second round, and a pause that ends after ``count``."""
    done = 0

    def run(args: Namespace) -> int:
        nonlocal done
        done += 1
        if done == 2:
            msg = "the agent is away"
            raise OverlayError(msg)
        Output(args.output, environment={}).table(("N",), [[f"round {done}"]], {"n": done})
        return 1

    def pause(_seconds: float) -> None:
        if done == count:
            raise KeyboardInterrupt

    return run, pause


def test_without_the_flag_it_runs_once(capsys: pytest.CaptureFixture[str]) -> None:
    run, pause = rounds(9)
    assert watched(run, pause)(Namespace(watch=None, output="table")) == 1
    assert capsys.readouterr().out == "N\nround 1\n"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("table", "N\nround 1\n\n\nN\nround 3\n"),
        ("json", '{\n  "n": 1\n}\n{\n  "n": 3\n}\n'),
        ("yaml", "n: 1\n---\n---\nn: 3\n"),
    ],
)
def test_rounds_are_appended_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], output: str, said: str
) -> None:
    run, pause = rounds(3)
    assert watched(run, pause)(Namespace(watch=2.0, output=output)) == 0
    shown = capsys.readouterr()
    assert shown.out == said
    assert "the agent is away" in shown.err


def test_rounds_are_drawn_over_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    run, pause = rounds(3)
    assert watched(run, pause)(Namespace(watch=2.0, output="table")) == 0
    begin, *frames = terminal.getvalue().split("\x1b[H")
    assert begin == "\x1b[?7l\x1b[2J"
    assert ["round 1" in frames[0], "away" in frames[1], "round 3" in frames[2]] == [True] * 3
    assert "round 1" not in frames[1]
    assert terminal.getvalue().endswith("\x1b[?7h"), "long lines wrap again afterwards"


def test_frame_fits_the_terminal_and_says_what_it_leaves_out() -> None:
    drawn = frame("a\nb\nc\nd\n", height=4, every_s=2)
    assert drawn == "\x1b[Ha\x1b[K\nb\x1b[K\nevery 2 s, 2 more lines; Ctrl-C ends\x1b[K\n\x1b[J"


def test_what_fails_at_first_is_raised() -> None:
    assert main(["peers", "--watch", "--socket", "/nonexistent"], environment={}) == 3


@pytest.mark.parametrize("value", ["0", "x", "-1", "nan", "1e9"])
def test_interval_that_is_none(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peers", f"--watch={value}"], environment={}) == 2
    assert "write seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *("status", "peers", "diff", "leases", "leases show x", "ipam list", "ipam check"),
        *("mesh", "mtu", "policy list", "pod list"),
    ],
)
def test_tables_can_be_watched(words: str) -> None:
    assert parser().parse_args([*words.split(), "--watch", "0.5"]).watch == 0.5
