"""Durations as people write them."""

import re
from typing import Final

_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S: Final = 10 * 365 * 86400  # etcd takes 285 years at most


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as ``90s``, ``1h30m`` or ``24h``.

    Raises ValueError in words for a user.

    >>> parse_duration("1h30m")
    5400.0
    """
    parts = _PART.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        msg = f"{text[:40]!r} is not a duration such as 90s, 60m or 24h"
        raise ValueError(msg)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds <= _LONGEST_S:
        msg = f"{text[:40]!r} is no time at all, or more than ten years"
        raise ValueError(msg)
    return float(seconds)
