"""The thread that has time: makes events readable, writes them, and tells peers apart.

Events wait here for a quarter of a second, so that a burst is one write; those
that matter most (``AT_ONCE``) only until this thread runs. Nobody waits for it.
"""

import json
import logging
import threading
from typing import Final

from overlay.agent.event_journal import Journal
from overlay.agent.event_peers import Peers, held, step
from overlay.agent.events import ROOM
from overlay.agent.status import Snapshot, Status
from overlay.model.event import Event, Kind
from overlay.model.network import NetworkConfig, format_network_config

log = logging.getLogger(__name__)

_BATCH_S: Final = 0.25
_RETRY_S: Final = 5.0  # after a disk was full


class Recorder:
    """Records the events of ``status`` in ``journal`` from ``start`` until ``close``."""

    def __init__(self, status: Status, journal: Journal, batch_s: float = _BATCH_S) -> None:
        self._status = status
        self._events = status.events
        self._journal = journal
        self._batch_s = batch_s
        self._stop = threading.Event()
        self._unwritten: list[Event] = []
        self._error = ""
        self._seen = Snapshot()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Take up what an earlier run left, and begin. Never raises for what is on the disk."""
        try:
            events, bad = self._journal.load()
        except OSError as exc:
            log.warning("earlier events cannot be read: %s", exc)
            events, bad = [], 0
        if bad:
            log.warning("%d lines of earlier events cannot be read and are passed over", bad)
        self._events.restore(events)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and write what it had not. Nothing is done where it never began."""
        if not self._thread.is_alive():
            return
        self._stop.set()
        self._events.urgent.set()
        self._events.bell.set()
        self._thread.join()
        self.record()

    def record(self) -> None:
        """Make all that was noted readable, and write it."""
        self._look(self._status.get())
        self._unwritten = [*self._unwritten, *self._events.flush()][-ROOM:]
        if not self._unwritten:
            return
        try:
            self._journal.append(self._unwritten)
        except OSError as exc:
            if str(exc) != self._error:
                log.warning("events are kept in memory alone: %s", exc)
            self._error = str(exc)
            return
        self._error = ""
        self._unwritten = []

    def _run(self) -> None:
        while not self._stop.is_set():
            self._events.bell.wait(_RETRY_S if self._error else None)
            self._events.urgent.wait(self._batch_s)
            self._events.urgent.clear()
            self._events.bell.clear()
            self.record()

    def _look(self, now: Snapshot) -> None:
        """Note what the snapshots tell by themselves, nearer to nobody's hot path than here."""
        seen, self._seen = self._seen, now
        if seen is now or now.site is None:
            return
        before = seen.site.config if seen.site is not None else None
        if before is not None and before != now.site.config:
            self._events.note(Kind.CONFIG_CHANGED, _difference(before, now.site.config))
        if now.held is not seen.held:
            for kind, text, facts in held(_held(seen), _held(now)):
                self._events.note(kind, text, **facts)
        for kind, text, facts in step(seen, now):
            self._events.note(kind, text, **facts)


def _held(snapshot: Snapshot) -> Peers:
    return snapshot.held.leases if snapshot.held is not None else {}


def _difference(before: NetworkConfig, after: NetworkConfig) -> str:
    """Return the keys of the network config that changed, with what they say now."""
    old, new = (json.loads(format_network_config(config)) for config in (before, after))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    words = (f"{key} is {json.dumps(new.get(key))}, was {json.dumps(old.get(key))}" for key in keys)
    return "; ".join(words)
