"""What a fault is, and what came of one. Values only."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from overlay.lab.chaos.cast import VXLAN
from overlay.lab.chaos.stream import Mark

if TYPE_CHECKING:
    from overlay.lab.chaos.stage import Stage

DEADLINE_S: Final = 20.0
FROM_FAULT: Final = "fault"
FROM_RETURN: Final = "return"  # of what was away: the store, the link, the process


def nothing() -> None:
    """Undo nothing."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A fault that has been planted.

    ``at`` is the moment that repair is timed from (``time.monotonic``), ``lost_since``
    where packets are counted from, None for the moment before planting.
    ``right`` may be asked any number of times; ``undo`` once, and leaves the
    stage as it was. ``note`` may be asked for when all is right.
    """

    right: Callable[[], bool]
    at: float = field(default_factory=time.monotonic)
    undo: Callable[[], None] = nothing
    lost_since: Mark | None = None
    note: str | Callable[[], str] = ""

    def told(self) -> str:
        """Return what to know of the repair, once it is made."""
        return self.note if isinstance(self.note, str) else self.note()


Plant: TypeAlias = "Callable[[Stage], Planted]"


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table.

    ``flannel`` says what flannel v0.28.9 does in the same row. Where ``is_lossless``
    no packet may be lost; ``target_s`` is what the slowest repair may take, and
    ``median_target_s`` what the median may. It is planted in the lab of its
    ``setting``. ``plant`` raises Skipped where the
    product cannot be asked this.
    """

    name: str
    group: str
    plant: Plant
    flannel: str = "not measured"
    rounds: int = 1
    since: str = FROM_FAULT
    is_lossless: bool = False
    target_s: float = 1.0
    median_target_s: float | None = None
    setting: str = VXLAN


class Skipped(Exception):  # noqa: N818 - an outcome, not an error
    """The fault cannot be planted here; says why."""


@dataclass(frozen=True, slots=True)
class Round:
    """One planting: seconds until right (None: never), packets lost, what to know."""

    repair_s: float | None
    lost: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A fault and all its rounds; ``skipped`` says why there are none."""

    fault: Fault
    rounds: tuple[Round, ...] = ()
    skipped: str = ""

    @property
    def is_kept(self) -> bool:
        """Return whether it was repaired every time, and lost nothing where that is promised."""
        is_repaired = all(each.repair_s is not None for each in self.rounds)
        return is_repaired and not (self.fault.is_lossless and self.lost)

    @property
    def is_in_time(self) -> bool:
        """Return whether even the slowest repair met its target, and the median its own."""
        if self.median_s is None or self.worst_s is None:
            return False
        most_s = self.fault.median_target_s
        return self.worst_s <= self.fault.target_s and (most_s is None or self.median_s <= most_s)

    @property
    def median_s(self) -> float | None:
        """Return the median time to repair; None when one never was."""
        times = self._times
        return statistics.median(times) if times else None

    @property
    def worst_s(self) -> float | None:
        """Return the longest time to repair; None when one never was."""
        times = self._times
        return max(times) if times else None

    @property
    def lost(self) -> int:
        """Return the most packets that were lost in a round."""
        return max((each.lost for each in self.rounds), default=0)

    @property
    def note(self) -> str:
        """Return what the last round had to say."""
        return next((each.note for each in reversed(self.rounds) if each.note), "")

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values; times in seconds."""
        return {
            "name": self.fault.name,
            "group": self.fault.group,
            "since": self.fault.since,
            "flannel": self.fault.flannel,
            "lossless": self.fault.is_lossless,
            "target_s": self.fault.target_s,
            "skipped": self.skipped or None,
            "kept": self.is_kept,
            "in_time": self.is_in_time,
            "median_s": self.median_s,
            "worst_s": self.worst_s,
            "lost": self.lost,
            "note": self.note,
            "rounds": [asdict(each) for each in self.rounds],
        }

    @property
    def _times(self) -> list[float]:
        times = [each.repair_s for each in self.rounds]
        return [] if None in times else [each for each in times if each is not None]
