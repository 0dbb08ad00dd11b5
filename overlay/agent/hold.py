"""Mass deletions on this node: held, asked about, answered, and not forgotten by a restart.

The decision is ``overlay.plan.prune``; here are its log lines, its file and
what an operator says to it.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from overlay.agent.files import boot_id, write_file
from overlay.agent.status import Held, Status
from overlay.model.errors import LeaseFormatError, OverlayError
from overlay.model.lease import Lease, format_attributes, parse_lease
from overlay.plan.places import Places
from overlay.plan.prune import FOR_EVER, Acting, Gone, Prune, PruneLimit

log = logging.getLogger(__name__)

_NAMED: Final = 5  # peers that a log line names
_FORMAT: Final = 1  # of the file; another one when an older version would misread it
_REVISIONS: Final = ("create_revision", "mod_revision", "lease_id")


class NothingHeldError(OverlayError):
    """An operator's word about held peers, and there are none."""

    def __init__(self) -> None:
        super().__init__("no peer is held back on this node")


class Hold:
    """Which leases the reconciler acts on. Its thread asks; any thread may ``answer``.

    ``path`` keeps what is held over a restart of the agent. It is of one boot,
    as the kernel's objects are.
    """

    def __init__(
        self,
        limit: PruneLimit,
        path: Path,
        status: Status,
        clock: Callable[[], float],
        write: Callable[[Path, str], None] = write_file,
    ) -> None:
        self._limit = limit
        self._path = path
        self._status = status
        self._clock = clock
        self._write = write
        self._lock = threading.Lock()
        self._places = Places()
        self._acting = Acting()
        self._prune = self._load()
        self._written = self._prune.held
        self._shown: Mapping[str, Gone] = {}  # by the status, which begins with none

    @property
    def due_at(self) -> float:
        """Return when to ask again although the store did not change."""
        return self._prune.due_at

    def leases(self, view: Mapping[str, Lease], own: str) -> Mapping[str, Lease]:
        """Return the store's leases and the held ones; the same object while nothing changes."""
        with self._lock:
            before = self._prune
            after = self._prune = before.after(view, own, self._clock(), self._limit, self._places)
            leases = self._acting.leases(after)
        if after is not before:
            self._tell(before, after)
        return leases

    def answer(self, *, let_go: bool) -> int:
        """Let the held peers go now, or hold them until they come back; return how many.

        Raises NothingHeldError.
        """
        with self._lock:
            before = self._prune
            if not before.held:
                raise NothingHeldError
            self._prune = before.let_go() if let_go else before.keep()
        count = len(before.held)
        what = "let go" if let_go else "held until they come back"
        log.warning("%d peers that vanished are %s: an operator says so", count, what)
        self._publish()
        return count

    def _tell(self, before: Prune, after: Prune) -> None:
        held, were = after.held, before.held
        if len(held) > len(were) or held.keys() - were.keys():
            self._status.count(mass_deletions=0 if were else 1)
            new = sorted(held.keys() - were.keys())
            log.warning(
                "%d peers vanished from the store within a second (%s); traffic to them goes on "
                "for %.0f s: `overlayctl peers prune` lets them go now, `overlayctl peers keep` "
                "keeps them until they come back",
                len(new),
                _shortened([f"{held[key].lease.subnet} of {held[key].lease.node}" for key in new]),
                max(0.0, after.due_at - self._clock()),
            )
        if after.expired:
            log.warning(
                "%d peers that vanished did not come back in time and are let go (%s)",
                len(after.expired),
                _shortened([str(were[key].lease.subnet) for key in after.expired if key in were]),
            )
        if back := were.keys() - held.keys() - set(after.expired):
            log.info("%d peers that had vanished are back, or others took their place", len(back))
        if held or were:
            self._publish()

    def _publish(self) -> None:
        held = self._prune.held
        if held != self._shown:  # else the snapshot's stay the same object, and nobody compares
            self._shown = held
            leases = {key: each.lease for key, each in held.items()}
            self._status.update(held=Held(leases, self._prune.due_at) if held else None)
        if held == self._written:
            return
        self._written = held
        try:
            if held:
                self._write(self._path, json.dumps(_document(held)))
            else:
                self._path.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("%s: %s; a restart would forget held peers", self._path, exc.strerror)

    def _load(self) -> Prune:
        """Return what the last run of this boot held. Nothing that the file holds is an error."""
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document["boot_id"] != boot_id():
                return Prune()
            _require_format(document)
            gone = {each.lease.subnet.key: each for each in map(_parse, document["held"])}
        except FileNotFoundError:
            return Prune()
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
            LeaseFormatError,
        ) as exc:
            log.warning("held peers in %s are not read: %s", self._path, exc)
            return Prune()
        if gone:
            log.warning("%d peers that vanished before the restart are still held", len(gone))
        return replace(Prune(), gone=gone)


def _require_format(document: Mapping[str, Any]) -> None:
    """Raise ValueError for a document of another version.

    One without a number is of a version before there were any, and the same but for that.
    """
    found = document.get("format", _FORMAT)
    if found != _FORMAT:
        msg = f"format {found!r} is of another version, this one writes {_FORMAT}"
        raise ValueError(msg)


def _document(held: Mapping[str, Gone]) -> dict[str, Any]:
    """Return the file's JSON. ``until`` is null where the peers are kept for ever."""
    return {
        "format": _FORMAT,
        "boot_id": boot_id(),
        "held": [
            {
                "key": key,
                "value": format_attributes(each.lease.attributes).decode(),
                **{name: getattr(each.lease, name) for name in _REVISIONS},
                "at": each.at,
                "until": None if each.until == FOR_EVER else each.until,
            }
            for key, each in held.items()
        ],
    }


def _parse(item: Any) -> Gone:
    revisions = {name: int(item[name]) for name in _REVISIONS}
    lease = parse_lease(item["key"], item["value"].encode(), **revisions)
    until = FOR_EVER if item["until"] is None else float(item["until"])
    return Gone(lease, float(item["at"]), until)


def _shortened(texts: list[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join([*texts[:_NAMED], *([f"and {more} more"] if more > 0 else [])])
