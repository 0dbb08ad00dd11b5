"""What an agent did and why: one event, as programs read it and as the agent keeps it.

An event is told, never acted on. Its number orders events; its time is the
node's wall clock, for people. docs/cli.md has the JSON.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from overlay.model.document import parse_json
from overlay.model.errors import OverlayError

FILE: Final = "events.jsonl"  # in the state directory, with ".1" the older half
_MOST: Final = 1 << 53  # what every reader of JSON can count to (RFC 8259, section 6)


class EventFormatError(OverlayError):
    """A line is no event."""


class Kind(StrEnum):
    """What happened. The word before the first dash is the kind's group."""

    AGENT_STARTED = "agent-started"
    AGENT_READY = "agent-ready"
    AGENT_STOPPING = "agent-stopping"
    CONFIG_CHANGED = "config-changed"
    CONFIG_REFUSED = "config-refused"
    DRIFT_REPAIRED = "drift-repaired"
    KERNEL_REFUSED = "kernel-refused"
    LEASE_CLAIMED = "lease-claimed"
    LEASE_LAPSED = "lease-lapsed"
    LEASE_LOST = "lease-lost"
    LEASE_RENEWED = "lease-renewed"
    PEER_ADDED = "peer-added"
    PEER_CHANGED = "peer-changed"
    PEER_HELD = "peer-held"
    PEER_REMOVED = "peer-removed"
    POD_ATTACHED = "pod-attached"
    POD_DETACHED = "pod-detached"
    POD_REFUSED = "pod-refused"
    POD_STRANDED = "pod-stranded"
    POLICY_CUT = "policy-cut"
    POLICY_DENIED = "policy-denied"
    POLICY_REFUSED = "policy-refused"
    RULESET_APPLIED = "ruleset-applied"
    STORE_BACK = "store-back"
    STORE_LOST = "store-lost"


WARNINGS: Final = frozenset(
    {
        Kind.CONFIG_REFUSED,
        Kind.DRIFT_REPAIRED,
        Kind.KERNEL_REFUSED,
        Kind.LEASE_LAPSED,
        Kind.LEASE_LOST,
        Kind.PEER_HELD,
        Kind.POD_REFUSED,
        Kind.POD_STRANDED,
        Kind.POLICY_REFUSED,
        Kind.STORE_LOST,
    }
)

# Rare, and what is asked for first after an agent was killed: written without delay.
AT_ONCE: Final = frozenset(
    {
        Kind.AGENT_STARTED,
        Kind.AGENT_READY,
        Kind.AGENT_STOPPING,
        Kind.CONFIG_CHANGED,
        Kind.CONFIG_REFUSED,
        Kind.LEASE_CLAIMED,
        Kind.LEASE_LOST,
        Kind.PEER_HELD,
        Kind.POD_STRANDED,
        Kind.STORE_BACK,
        Kind.STORE_LOST,
    }
)


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``time`` is RFC 3339 in UTC with milliseconds, so that its text sorts.

    ``kind`` is text, for a file may be a later version's. ``times`` counts
    equal events that came at once.
    """

    number: int
    time: str
    kind: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the event's document; ``parse_event`` reads it."""
        return {
            "number": self.number,
            "time": self.time,
            "kind": self.kind,
            "text": self.text,
            "times": self.times,
            "facts": dict(self.facts),
        }


def parse_event(document: Any) -> Event:
    """Return the event in ``document``. Raises EventFormatError for anything else."""
    if not isinstance(document, dict):
        raise EventFormatError("an event is an object")
    number, times = (_count(document.get(name, 1)) for name in ("number", "times"))
    time, kind, text = (_text(document.get(name)) for name in ("time", "kind", "text"))
    facts = document.get("facts", {})
    if not isinstance(facts, dict) or "number" not in document:
        raise EventFormatError("an event has a number and facts")
    return Event(number, time, kind, text, facts, times)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST:
        raise EventFormatError("an event's number counts from 1")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise EventFormatError("an event's time, kind and text are texts")
    return value


def parse_lines(lines: Iterable[bytes]) -> tuple[list[Event], int]:
    """Return the events in a file's lines, by number, and how many lines are none."""
    events: dict[int, Event] = {}
    bad = 0
    for line in lines:
        try:
            event = parse_event(parse_json(line))
        except (ValueError, EventFormatError):
            bad += bool(line)
            continue
        events[event.number] = event
    return [events[number] for number in sorted(events)], bad


def timestamp(moment: datetime) -> str:
    """Return ``moment`` as events have it.

    >>> timestamp(datetime(2026, 8, 1, 12, 0, 0, 5000, tzinfo=UTC))
    '2026-08-01T12:00:00.005Z'
    """
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are asked for: those after a number, since a time, of some kinds or groups."""

    after: int = 0
    since: str = ""
    kinds: frozenset[str] = frozenset()

    def takes(self, event: Event) -> bool:
        """Return whether ``event`` is asked for."""
        return (
            event.number > self.after
            and event.time >= self.since
            and (not self.kinds or bool({event.kind, group(event.kind)} & self.kinds))
        )


def group(kind: str) -> str:
    """Return the group of a kind.

    >>> group("lease-lost")
    'lease'
    """
    return kind.partition("-")[0]


def groups() -> list[str]:
    """Return the groups that there are, by name."""
    return sorted({group(kind) for kind in Kind})


def unknown_kinds(words: Iterable[str]) -> list[str]:
    """Return those of ``words`` that are neither a kind nor a group."""
    known = {*map(str, Kind), *groups()}
    return [word for word in words if word not in known]
