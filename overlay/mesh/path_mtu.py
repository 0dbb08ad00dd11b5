"""The search for the largest packet that a path carries: sizes to try, and what came back.

Sizes are of whole IP packets, in bytes. A path that swallows what is too large
and says nothing (no ICMP) is found all the same: what does not come back is
too large (RFC 8899, section 4.3 has the reasoning).
"""

from dataclasses import dataclass
from typing import Final

_SPREAD: Final = 16  # sizes tried at once
_ATTEMPTS: Final = 2  # a datagram may be lost for other reasons


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The largest packets, in bytes, to a peer and back; None where nothing came back at all."""

    out: int | None
    back: int | None

    @property
    def least(self) -> int | None:
        """Return the smaller one; None where either is not known."""
        if self.out is None or self.back is None:
            return None
        return min(self.out, self.back)


class Search:
    """One path in one direction, between ``floor`` and ``ceiling``.

    Send ``sizes()``, call ``heard`` for each that comes back and ``waited``
    once the time for the rest is over, until ``is_done``. A path without
    trouble takes one round.
    """

    def __init__(self, floor: int, ceiling: int) -> None:
        self._good = 0
        self._high = max(floor, ceiling)
        self._round: tuple[int, ...] = tuple(sorted({floor, self._high}))
        self._attempts = 0
        self._is_lost = False

    @property
    def is_done(self) -> bool:
        """Return whether the answer is known, or that there is none."""
        return self._is_lost or self._good >= self._high

    @property
    def result(self) -> int | None:
        """Return the largest size that came back; None where not even the floor did."""
        return self._good or None

    def sizes(self) -> tuple[int, ...]:
        """Return what to send now; empty when done."""
        return () if self.is_done else tuple(size for size in self._round if size > self._good)

    def heard(self, size: int) -> None:
        """Note that ``size`` came through."""
        if size in self._round:
            self._good = max(self._good, size)

    def waited(self) -> None:
        """Note that nothing more comes of what was sent."""
        if self.is_done:
            return
        missing = [size for size in self._round if size > self._good]
        self._attempts += 1
        if missing and self._attempts < _ATTEMPTS:
            return
        self._attempts = 0
        if not self._good:
            self._is_lost = True
            return
        if missing:
            self._high = missing[0] - 1
        step = max(1, -(-(self._high - self._good) // _SPREAD))
        self._round = tuple(range(self._high, self._good, -step))[::-1]
