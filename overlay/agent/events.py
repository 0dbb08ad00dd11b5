"""The agent's events: noted by any thread with one call, read by whoever asks.

To note one costs a few microseconds and never waits for a disk: events gather
until ``flush``, which the recorder's thread calls (agent/event_recorder.py).
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from overlay.model.event import AT_ONCE, Event, Filter, Kind, timestamp

ROOM: Final = 4096  # events that are kept in memory
_LONGEST_TEXT: Final = 1000  # characters; some of it was written by other nodes
_LONGEST_FACT: Final = 200
_MOST_ITEMS: Final = 32  # of a fact that is a list

Told: TypeAlias = tuple[str, Mapping[str, Any]]  # text and facts
Clock: TypeAlias = Callable[[], datetime]


def wall_clock() -> datetime:
    """Return the time of day, for people to read; nothing is decided by it."""
    return datetime.now(UTC)


class Events:
    """A ring of the last ``room`` events, for any thread. Numbers grow by one and never repeat."""

    def __init__(self, clock: Clock = wall_clock, room: int = ROOM) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._grown = threading.Condition()
        self._gathered: deque[tuple[int, datetime, Kind, Callable[[], Told]]] = deque(maxlen=room)
        self._ring: deque[Event] = deque(maxlen=room)
        self._last = 0
        self._counts: Counter[str] = Counter()
        self.bell = threading.Event()  # rung when there may be something to flush
        self.urgent = threading.Event()  # set when that should be on the disk at once

    def note(self, kind: Kind, text: str, **facts: Any) -> None:
        """Note what happened, in words and with facts that JSON can hold."""
        self.note_later(kind, lambda: (text, facts))

    def note_later(self, kind: Kind, tell: Callable[[], Told]) -> None:
        """Note what happened; ``tell`` is asked for words and facts when there is time."""
        with self._lock:
            self._last += 1
            self._gathered.append((self._last, self._clock(), kind, tell))
        if kind in AT_ONCE:
            self.urgent.set()
        self.bell.set()

    def flush(self) -> list[Event]:
        """Let readers see what was noted; return it, by number. One thread calls it.

        Equal events that came one after another become one, with the number of
        the last.
        """
        with self._lock:
            gathered, self._gathered = self._gathered, deque(maxlen=self._gathered.maxlen)
        events: list[Event] = []
        for number, moment, kind, tell in gathered:
            text, facts = tell()
            event = Event(number, timestamp(moment), kind, text[:_LONGEST_TEXT], _bounded(facts))
            if events and _is_same(events[-1], event):
                event = replace(event, times=events.pop().times + 1)
            events.append(event)
        if events:
            with self._grown:
                self._ring.extend(events)
                for event in events:
                    self._counts[event.kind] += event.times
                self._grown.notify_all()
        return events

    def restore(self, events: Iterable[Event]) -> None:
        """Take up what an earlier run noted, before anything new is flushed."""
        kept = list(events)
        with self._lock:
            first = max((event.number for event in kept), default=0)
            self._gathered = deque(
                ((first + n, at, kind, tell) for n, at, kind, tell in self._gathered),
                maxlen=self._gathered.maxlen,
            )
            self._last += first
        with self._grown:
            self._ring.extend(kept)

    def read(self, wanted: Filter, wait_s: float = 0.0) -> tuple[list[Event], int]:
        """Return the events that ``wanted`` takes, by number; wait for one where there is none.

        With them comes the number up to which nothing else is to be had.
        """
        with self._grown:
            found: list[Event] = []

            def look() -> bool:
                found[:] = [event for event in self._ring if wanted.takes(event)]
                return bool(found)

            self._grown.wait_for(look, wait_s)
            return found, self._ring[-1].number if self._ring else 0

    def counts(self) -> Mapping[str, int]:
        """Return how many events of each kind this run has flushed."""
        with self._grown:
            return dict(self._counts)


def _is_same(one: Event, other: Event) -> bool:
    return (one.kind, one.text, one.facts) == (other.kind, other.text, other.facts)


def _bounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``facts`` with long texts and lists cut: what a peer wrote must not fill the ring."""
    return {name: _short(value) for name, value in facts.items()}


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_short(item) for item in value[:_MOST_ITEMS]]
    return value[:_LONGEST_FACT] if isinstance(value, str) else value
