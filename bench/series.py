"""Samples of one thing, and what is said of them. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_NONE: Final = "-"


@dataclass(frozen=True, slots=True)
class Series:
    """At least one sample, in the order they were taken and in the unit they were taken in."""

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            msg = "a series without a sample"
            raise ValueError(msg)

    @property
    def median(self) -> float:
        """Return the median; the mean of the middle two where their number is even."""
        return statistics.median(self.samples)

    def quantile(self, part: float) -> float:
        """Return the smallest sample that at least ``part`` of all samples do not exceed.

        >>> Series((3.0, 1.0, 2.0, 4.0)).quantile(0.5)
        2.0
        """
        rank = max(1, math.ceil(part * len(self.samples)))
        return sorted(self.samples)[rank - 1]

    def spread(self, scale: float = 1.0, digits: int = 2) -> str:
        """Return median, least and greatest, multiplied by ``scale``.

        >>> Series((0.5, 0.25, 0.75)).spread(1000, 0)
        '500 (250-750)'
        """
        low, high = min(self.samples) * scale, max(self.samples) * scale
        return f"{self.median * scale:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    def tail(self, scale: float = 1.0, digits: int = 1) -> str:
        """Return median and 99th percentile, multiplied by ``scale``.

        >>> Series(tuple(map(float, range(1, 201)))).tail()
        '100.5 / 198.0'
        """
        return f"{self.median * scale:.{digits}f} / {self.quantile(0.99) * scale:.{digits}f}"


def series(samples: Sequence[float]) -> Series:
    """Return the series of ``samples``. Raises ValueError when there are none."""
    return Series(tuple(samples))


def paired(parts: Sequence[float], floors: Sequence[float]) -> Series:
    """Return each round's own ratio: parts and floors were taken side by side.

    >>> paired((3.0, 8.0), (2.0, 4.0)).samples
    (1.5, 2.0)
    """
    return Series(tuple(part / floor for part, floor in zip(parts, floors, strict=True)))


def ratio(part: float, floor: float, digits: int = 1) -> str:
    """Return ``part / floor`` as text, a dash where the floor is nothing.

    >>> ratio(3.0, 2.0), ratio(1.0, 0.0)
    ('1.5', '-')
    """
    return f"{part / floor:.{digits}f}" if floor > 0 else _NONE
