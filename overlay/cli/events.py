"""``events``: what this node's agent did and why, from the agent or from what it left on disk."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from overlay.cli import shapes
from overlay.cli.control import AgentUnreachableError, call
from overlay.cli.flags import Parser, socket_path, with_output
from overlay.cli.out import Output
from overlay.model.duration import parse_duration
from overlay.model.errors import UsageError
from overlay.model.event import (
    FILE,
    WARNINGS,
    Event,
    Filter,
    Kind,
    groups,
    parse_event,
    parse_lines,
    timestamp,
    unknown_kinds,
)

_WAIT_S: Final = 5.0  # that the agent holds a request for what is not there yet
_AWAY_S: Final = 1.0  # between two tries to find an agent that went


def add_parser(commands: Any) -> None:
    """Add the command."""
    about = "what this node's agent did and why, oldest first; kept when the agent restarts"
    parser: Parser = commands.add_parser("events", help=about, description=about)
    parser.add_argument(
        "--follow", "-f", action="store_true", help="go on with what happens, until interrupted"
    )
    parser.add_argument(
        "--since", default="", metavar="WHEN", help="a duration such as 10m, or a time in RFC 3339"
    )
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        metavar="KIND",
        help=f"kinds or groups, with commas or repeated: {', '.join(groups())}, "
        f"or one of {', '.join(Kind)}",
    )
    parser.add_argument(
        "--last", type=int, default=0, metavar="N", help="only the last N of what is there"
    )
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="read what an agent left there; needs none"
    )
    parser.set_defaults(run=with_output(show_events))


def show_events(args: Namespace, out: Output) -> int:
    """Print events; with ``--follow`` go on until interrupted. Raises UsageError."""
    wanted = Filter(since=_since(args.since, datetime.now(UTC)), kinds=_kinds(args.kind))
    if args.last < 0:
        raise UsageError(f"--last {args.last}: write a number of events")
    if args.state_dir is not None:
        if args.follow:
            raise UsageError("--follow needs the agent; leave out --state-dir")
        _print([e for e in read_files(args.state_dir) if wanted.takes(e)][-args.last :], out)
        return 0
    events, last = _ask(socket_path(args), wanted, 0.0)
    _print(events[-args.last :], out)
    if args.follow:
        try:
            follow(socket_path(args), wanted, last, out)
        except KeyboardInterrupt:
            return 0
    return 0


def follow(
    path: Path,
    wanted: Filter,
    last: int,
    out: Output,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Print what comes after the event ``last``; an agent that restarts is waited for."""
    is_away = False
    while True:
        try:
            events, seen = _ask(path, Filter(last, wanted.since, wanted.kinds), _WAIT_S)
        except AgentUnreachableError as exc:
            if not is_away:
                sys.stderr.write(f"overlayctl: {exc}; waiting for it\n")
            is_away = True
            pause(_AWAY_S)
            continue
        is_away = False
        last = seen  # lower than before where an agent lost what was on its disk
        _print(events, out)


def read_files(directory: Path) -> list[Event]:
    """Return the events in a state directory, by number; lines that are none are passed over.

    Raises UsageError where there is nothing to read.
    """
    lines: list[bytes] = []
    for path in (directory / f"{FILE}.1", directory / FILE):
        try:
            lines += [b"", *path.read_bytes().split(b"\n")]
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise UsageError(f"{path}: {exc.strerror}") from exc
    if not lines:
        raise UsageError(f"{directory}: no {FILE} here; is this the agent's --state-dir?")
    return parse_lines(lines)[0]


def _ask(path: Path, wanted: Filter, wait_s: float) -> tuple[list[Event], int]:
    given = {
        "after": wanted.after,
        "since": wanted.since,
        "kinds": sorted(wanted.kinds),
        "wait_s": wait_s,
    }
    result = call(path, "events", given, like=shapes.EVENTS)
    return [parse_event(document) for document in result["events"]], result["last"]


def _print(events: Sequence[Event], out: Output) -> None:
    for event in events:
        colour = "yellow" if event.kind in WARNINGS else ""
        out.event(_line(event), event.to_json(), colour)


def _line(event: Event) -> str:
    times = f" ({event.times} times)" if event.times > 1 else ""
    return f"{event.time} {event.kind:<15} {event.text}{times}"


def _kinds(words: Sequence[str]) -> frozenset[str]:
    kinds = [kind.strip() for word in words for kind in word.split(",") if kind.strip()]
    if unknown := unknown_kinds(kinds):
        names = ", ".join((*groups(), *Kind))
        raise UsageError(f"--kind {unknown[0][:40]!r}: there are {names}")
    return frozenset(kinds)


def _since(text: str, now: datetime) -> str:
    """Return the time that ``--since`` means, as events have it; empty for none."""
    if not text:
        return ""
    try:
        moment = now - timedelta(seconds=parse_duration(text))
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as exc:
            raise UsageError(
                f"--since {text[:40]!r}: write a duration such as 10m or 2h, or a time such as "
                "2026-08-01T12:00:00Z"
            ) from exc
    return timestamp(moment)
