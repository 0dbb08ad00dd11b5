"""How long things took, counted in buckets: cheap to observe, read when somebody asks.

Bounds are in seconds, after what was measured: a pass over one peer takes a
millisecond, over 5,000 some seconds; an ADD 5 to 20 milliseconds.
"""

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final

BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, inf),
)


class Histogram:
    """Counts observations of any thread. To observe one costs less than a microsecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * len(BOUNDS_S)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one that took ``seconds``."""
        place = bisect_left(BOUNDS_S, seconds)
        with self._lock:
            self._counts[place] += 1
            self._sum_s += seconds

    def read(self) -> tuple[tuple[int, ...], float]:
        """Return how many there were up to each bound, and the sum in seconds."""
        with self._lock:
            counts, sum_s = tuple(self._counts), self._sum_s
        totals: list[int] = []
        for count in counts:
            totals.append(count + (totals[-1] if totals else 0))
        return tuple(totals), sum_s


CNI_COMMANDS: Final = ("ADD", "DEL", "CHECK", "GC", "STATUS")


def _by_command() -> Mapping[str, Histogram]:
    return {command: Histogram() for command in CNI_COMMANDS}


@dataclass(frozen=True, slots=True)
class Timings:
    """The agent's histograms: passes over the kernel, and CNI requests by command and outcome."""

    passes: Histogram = field(default_factory=Histogram)
    cni_done: Mapping[str, Histogram] = field(default_factory=_by_command)
    cni_failed: Mapping[str, Histogram] = field(default_factory=_by_command)
