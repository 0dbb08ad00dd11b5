"""What was measured: round trips and losses of one way to one peer, and histograms of all."""

from bisect import bisect_left
from collections import deque
from typing import Final

WINDOW: Final = 60  # the last probes that a share of losses is taken of
_SILENT: Final = 3  # probes without an echo, one after another
_WEIGHT: Final = 0.25  # of the newest round trip in the average, about the last seven
# Upper bounds in seconds: one host to the other side of the world.
BUCKETS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)


class Record:
    """One way to one peer. Times are in seconds; None where no echo has come yet."""

    __slots__ = ("_missing", "_window", "average_s", "last_s", "least_s", "lost", "sent")

    def __init__(self) -> None:
        self._window: deque[bool] = deque(maxlen=WINDOW)
        self._missing = 0  # in the window
        self.sent = 0
        self.lost = 0
        self.average_s: float | None = None
        self.last_s: float | None = None
        self.least_s: float | None = None

    def answered(self, rtt_s: float) -> None:
        """Note an echo."""
        self.sent += 1
        self._note(is_answered=True)
        self.last_s = rtt_s
        self.least_s = rtt_s if self.least_s is None else min(self.least_s, rtt_s)
        before = rtt_s if self.average_s is None else self.average_s
        self.average_s = before + _WEIGHT * (rtt_s - before)

    def missed(self) -> None:
        """Note a probe without an echo."""
        self.sent += 1
        self.lost += 1
        self._note(is_answered=False)

    def _note(self, *, is_answered: bool) -> None:
        if len(self._window) == WINDOW:
            self._missing -= not self._window[0]
        self._missing += not is_answered
        self._window.append(is_answered)

    @property
    def loss(self) -> float | None:
        """Return the share of the last WINDOW probes that got no echo; None before the first."""
        if not self._window:
            return None
        return self._missing / len(self._window)

    @property
    def is_silent(self) -> bool:
        """Return whether the newest three probes got no echo; one that was lost says nothing."""
        return len(self._window) >= _SILENT and not any(list(self._window)[-_SILENT:])


class Histogram:
    """Round trips by BUCKETS_S, for Prometheus."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, rtt_s: float) -> None:
        """Count one round trip."""
        self._counts[bisect_left(BUCKETS_S, rtt_s)] += 1
        self.sum_s += rtt_s

    def cumulative(self) -> list[tuple[str, float]]:
        """Return each bucket's bound and how many were no longer, as Prometheus has it.

        >>> h = Histogram(); h.add(0.0002); h.add(9.0)
        >>> h.cumulative()[1], h.cumulative()[-1]
        (('0.00025', 1), ('+Inf', 2))
        """
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self._counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows
