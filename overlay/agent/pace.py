"""How soon to repair an object again: at once, but ever later where somebody fights for it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from overlay.model.kernel import Key

_QUIET_S: Final = 30.0  # without a repair, after which the next one is made at once again
_PATIENCE: Final = 5  # repairs of one object in that time before they are made later
_PAUSE_MOST_S: Final = 10.0  # between repairs, against one who keeps on changing


_REST: Final = 10.0  # times as long as a look took
_REST_MOST_S: Final = 0.5


def rest_until(begun_at: float, now: float) -> float:
    """Return when to look again at what others change all the time, after a look that took so long.

    Looks then take a tenth of the time at most, and what somebody changed is
    found half a second later at the latest.
    """
    return now + min(_REST * (now - begun_at), _REST_MOST_S)


@dataclass(frozen=True, slots=True)
class Fight:
    """An object that is changed again and again: repaired ``times``, last at ``at``."""

    at: float
    times: int
    text: str  # the object, and who does it where that is known

    @property
    def pause_s(self) -> float:
        """Return how long to wait after the last repair, in seconds."""
        return (
            0.0
            if self.times <= _PATIENCE
            else min(0.1 * 2.0 ** (self.times - _PATIENCE), _PAUSE_MOST_S)
        )

    def is_on(self, now: float) -> bool:
        """Return whether repairs wait now, or did lately."""
        return self.pause_s > 0 and now - self.at < _QUIET_S

    def __str__(self) -> str:
        return f"somebody changes {self.text} again and again; repaired {self.times} times"


class Pace:
    """Remembers repairs, by kernel key. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._fights: dict[Key, Fight] = {}

    def next_at(self, now: float, key: Key) -> float:
        """Return when the object may be repaired."""
        fight = self._fights.get(key)
        return now if fight is None else max(now, fight.at + fight.pause_s)

    def repaired(self, now: float, repairs: Mapping[Key, str]) -> float:
        """Note repairs, each with its text; return the longest pause that now begins."""
        self._fights = {k: f for k, f in self._fights.items() if now - f.at < _QUIET_S}
        for key, text in repairs.items():
            known = self._fights.get(key)
            self._fights[key] = Fight(now, known.times + 1 if known else 1, text)
        return max((self._fights[key].pause_s for key in repairs), default=0.0)

    def contested(self, now: float) -> Iterable[Fight]:
        """Return the objects whose repair waits or did lately, most fought over first."""
        on = (fight for fight in self._fights.values() if fight.is_on(now))
        return sorted(on, key=lambda fight: (-fight.times, fight.text))
