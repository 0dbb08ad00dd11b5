"""``--watch`` for commands that print a table: again and again, until interrupted.

On a terminal each round is drawn over the last one. Elsewhere rounds follow
one another, so that a file keeps them all.
"""

import argparse
import contextlib
import io
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Final

from overlay.cli.flags import Parser
from overlay.model.errors import OverlayError

_EVERY_S: Final = 2.0
_SHORTEST_S: Final = 0.1  # a round costs the agent a few milliseconds
_LONGEST_S: Final = 86400.0
# ECMA-48 and DEC private modes, which every terminal of the last decades knows.
_HOME, _CLEAR, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"

Run = Callable[[Namespace], int]


def watchable(parser: Parser, run: Run) -> None:
    """Let ``parser`` run ``run``, with ``--watch`` again and again."""
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=_EVERY_S,
        metavar="SECONDS",
        help=f"again every SECONDS ({_EVERY_S:g}), until interrupted",
    )
    parser.set_defaults(run=watched(run))


def watched(run: Run, pause: Callable[[float], None] = time.sleep) -> Run:
    """Return ``run`` as a command with ``--watch``: its status, or 0 once it is interrupted.

    What fails at first is raised; what fails later is told, and tried again.
    """

    def again(args: Namespace) -> int:
        if args.watch is None:
            return run(args)
        with contextlib.suppress(KeyboardInterrupt):
            if sys.stdout.isatty():
                _redraw(run, args, pause)
            else:
                _append(run, args, pause)
        return 0

    return again


def _redraw(run: Run, args: Namespace, pause: Callable[[float], None]) -> None:
    terminal = sys.stdout
    text = _round(run, args)
    terminal.write(_NO_WRAP + _CLEAR)
    try:
        while True:
            terminal.write(frame(text, shutil.get_terminal_size().lines, args.watch))
            terminal.flush()
            pause(args.watch)
            try:
                text = _round(run, args)
            except OverlayError as exc:
                text = f"{exc}\n"
    finally:
        terminal.write(_WRAP)
        terminal.flush()


def _append(run: Run, args: Namespace, pause: Callable[[float], None]) -> None:
    run(args)
    while True:
        sys.stdout.flush()
        pause(args.watch)
        if args.output != "json":
            sys.stdout.write("---\n" if args.output == "yaml" else "\n")
        try:
            run(args)
        except OverlayError as exc:
            sys.stderr.write(f"overlayctl: {exc}\n")


def frame(text: str, height: int, every_s: float) -> str:
    """Return what draws ``text`` over the last frame on a terminal of ``height`` lines."""
    lines = text.rstrip("\n").split("\n")
    room = max(1, height - 2)  # one for the line below, one for the cursor
    more = f", {len(lines) - room} more lines" if len(lines) > room else ""
    foot = f"every {every_s:g} s{more}; Ctrl-C ends"
    return _HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in (*lines[:room], foot)) + _CLEAR_REST


class _Screen(io.StringIO):
    """Text on its way to a terminal: what is printed there is drawn as on one."""

    def isatty(self) -> bool:
        return True


def _round(run: Run, args: Namespace) -> str:
    screen = _Screen()
    with contextlib.redirect_stdout(screen):
        run(args)
    return screen.getvalue()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        msg = f"{text[:40]!r}: write seconds, from {_SHORTEST_S:g} to {_LONGEST_S:g}"
        raise argparse.ArgumentTypeError(msg)
    return seconds
