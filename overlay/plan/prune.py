"""Whether peers that vanish from the store are let go at once, or held back for a while.

One deletion is what it says. When many peers vanish within ``WINDOW_S`` it is
nearly always a mistake in the store (a prefix deleted, an old backup put
back), so what leads to them is held for ``PruneLimit.delay_s``. Watch events
come singly: peers let go in the same window, before the limit was passed,
come back with the rest.

The newer fact always wins. A lease that is there again is no deletion, and
one that is gone yields at once to any lease that takes its place: its
addresses, its VTEP, its node. Nothing here keeps a new lease out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from overlay.model.lease import Lease
from overlay.model.versioned import MapHistory, changed_keys
from overlay.plan.places import Places

WINDOW_S: Final = 1.0  # deletions so close to one another are one
AT_LEAST: Final = 10  # peers that a share of them must come to; small fabrics lose peers by nature
FOR_EVER: Final = float("inf")

_LIMIT: Final = re.compile(r"(\d{1,9})(%?)\Z")


@dataclass(frozen=True, slots=True)
class PruneLimit:
    """How many peers may vanish together: a share of all, or a number; neither: any number.

    A share counts only from ``AT_LEAST`` peers on. ``delay_s`` is how long
    more than that are held.
    """

    share: float | None = 0.5
    count: int | None = None
    delay_s: float = 60.0

    def is_exceeded(self, gone: int, peers: int) -> bool:
        """Return whether ``gone`` of ``peers``, the gone ones included, are too many."""
        if self.count is not None:
            return gone > self.count
        return self.share is not None and gone >= AT_LEAST and gone > self.share * peers


def parse_limit(text: str, delay_s: float = 60.0) -> PruneLimit:
    """Return the limit that ``text`` names: ``50%`` of the peers, ``12`` peers, ``off`` (or 0).

    Raises ValueError saying what may be written.

    >>> parse_limit("25%").share, parse_limit("12").count
    (0.25, 12)
    """
    match = _LIMIT.match(text)
    if text == "off" or (match is not None and int(match[1]) == 0):
        return PruneLimit(share=None, delay_s=delay_s)
    if match is None or (match[2] and int(match[1]) > 99):
        msg = f"{text!r} is no limit; write a share of the peers (1% to 99%), a number, or off"
        raise ValueError(msg)
    number = int(match[1])
    if match[2]:
        return PruneLimit(share=number / 100, delay_s=delay_s)
    return PruneLimit(share=None, count=number, delay_s=delay_s)


@dataclass(frozen=True, slots=True)
class Gone:
    """A lease that vanished at ``at``; held until ``until``, None where it was let go at once."""

    lease: Lease
    at: float
    until: float | None = None

    @property
    def is_held(self) -> bool:
        """Return whether what leads to it is held in the kernel."""
        return self.until is not None


@dataclass(frozen=True, slots=True)
class Prune:
    """Where the decision stands. Times are of one monotonic clock, in seconds.

    ``expired`` has the keys of those that were let go in this step since their
    time was up.
    """

    seen: Mapping[str, Lease] | None = None  # the store's, None before the first view
    gone: Mapping[str, Gone] = field(default_factory=dict)
    expired: tuple[str, ...] = ()

    @property
    def held(self) -> Mapping[str, Gone]:
        """Return the leases that are held, by key."""
        return {key: gone for key, gone in self.gone.items() if gone.is_held}

    @property
    def leases(self) -> Mapping[str, Lease]:
        """Return what to act on: the store's leases, and the held ones. ``Acting`` costs less."""
        held = {key: each.lease for key, each in self.held.items()}
        return {**(self.seen or {}), **held}

    @property
    def due_at(self) -> float:
        """Return when the next one is let go; ``FOR_EVER`` where none is by itself."""
        return min((g.until for g in self.gone.values() if g.until is not None), default=FOR_EVER)

    def after(
        self,
        view: Mapping[str, Lease],
        own: str,
        now: float,
        limit: PruneLimit,
        places: Places | None = None,
    ) -> "Prune":
        """Return the decision once the store holds ``view``; the same one where nothing differs.

        ``own`` is the key of the node's own lease, which is nobody's peer here.
        ``places`` is kept from one decision to the next, so that one costs no
        more than what changed.
        """
        if view is self.seen and now < self.due_at:
            return self if not self.expired else replace(self, expired=())
        seen = self.seen if self.seen is not None else {}
        gone = {k: g for k, g in self.gone.items() if g.is_held or now - g.at < WINDOW_S}
        for key in changed_keys(seen, view):
            lease = seen.get(key)
            if lease is None or key in view or key in gone or key == own or lease.is_vacant:
                continue
            gone[key] = Gone(lease, now)
        there = places if places is not None else Places()
        for key in _superseded(gone, self.gone if self.seen is not None else {}, view, there):
            del gone[key]
        recent = {key for key, each in gone.items() if now - each.at < WINDOW_S}
        expired = {k for k, g in gone.items() if g.until is not None and g.until <= now}
        gone = {k: g for k, g in gone.items() if (k in recent or g.is_held) and k not in expired}
        if recent and limit.is_exceeded(len(recent), len(recent) + _count_peers(there, view, own)):
            joined = (gone[key].until for key in recent if key in gone)
            until = max((u for u in joined if u is not None), default=now + limit.delay_s)
            for key in recent & gone.keys():
                if not gone[key].is_held:
                    gone[key] = replace(gone[key], until=until)
        return Prune(view, gone, tuple(sorted(expired)))

    def let_go(self) -> "Prune":
        """Return the decision after an operator said that the deletion is meant."""
        rest = {key: each for key, each in self.gone.items() if not each.is_held}
        return Prune(self.seen, rest)

    def keep(self) -> "Prune":
        """Return the decision after an operator said to hold on until the peers come back."""
        kept = {k: replace(g, until=FOR_EVER) if g.is_held else g for k, g in self.gone.items()}
        return Prune(self.seen, kept)


def _superseded(
    gone: Mapping[str, Gone], before: Mapping[str, Gone], view: Mapping[str, Lease], places: Places
) -> list[str]:
    """Return the keys of gone leases that are there again, or whose place another one took.

    Of those that were gone before, the place was free until this view.
    """
    if gone or places.is_begun:  # from the first deletion on, so that none costs more than itself
        places.follow(view)
    return [
        key
        for key, each in gone.items()
        if (key not in before or places.may_be_taken_since(each.lease))
        and (key in view or places.is_taken(each.lease))
    ]


def _count_peers(places: Places, view: Mapping[str, Lease], own: str) -> int:
    """Return the number of peers in ``view``, which ``places`` follow."""
    mine = view.get(own)
    return places.occupied - (mine is not None and not mine.is_vacant)


class Acting:
    """``Prune.leases`` of one decision after another, at the cost of what changed and is held."""

    def __init__(self) -> None:
        self._known = Prune()
        self._together: MapHistory[str, Lease] | None = None  # while any are held

    def leases(self, prune: Prune) -> Mapping[str, Lease]:
        """Return the leases to act on; the same object while they are the same."""
        known, self._known = self._known, prune
        store, held = prune.seen or {}, prune.held
        if not held:
            self._together = None
            return store
        if self._together is None:
            self._together = MapHistory(prune.leases)
        elif known is not prune:
            for key in {*changed_keys(known.seen or {}, store), *known.held, *held}:
                lease = held[key].lease if key in held else store.get(key)
                if lease is None:
                    self._together.discard(key)
                else:
                    self._together.put(key, lease)
        return self._together.snapshot()
