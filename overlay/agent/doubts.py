"""What the kernel told since the last pass, judged: what to look at, when, and who did it.

Our own changes come back as notices too and raise no doubt. What somebody
changes again and again is looked at ever later (``Pace``).
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from overlay.agent.pace import Pace, rest_until
from overlay.kernel.notices import (
    FORWARD_TABLES,
    OVERFLOW,
    SYSCTL,
    Change,
    Notice,
    RulesetChange,
    is_news,
)
from overlay.model.kernel import KernelObject, Key
from overlay.policy.ports import PORT_TABLE
from overlay.policy.ruleset import TABLE

NEVER: Final = float("inf")
FILTER: Final[Key] = ("table", "inet overlay")
SYSCTLS: Final[Key] = ("sysctl",)
_OUR_TABLES: Final = (TABLE, PORT_TABLE)
_REMEMBERED: Final = 16  # ruleset changes between two looks at the table


class Doubts:
    """``tell`` is for any thread, the rest for the reconciler's.

    ``is_lost`` says whether a change takes away what no mirror holds, and
    ``is_as_left`` whether devices, by their keys, are as the mirror says.
    """

    def __init__(
        self,
        pace: Pace,
        is_lost: Callable[[Change], bool] = lambda _: False,
        is_as_left: Callable[[Iterable[Key]], bool] = lambda _: False,
    ) -> None:
        self._pace, self._is_lost, self._is_as_left = pace, is_lost, is_as_left
        self._notices: deque[Notice] = deque()
        self._rulesets: deque[RulesetChange] = deque(maxlen=_REMEMBERED)
        self._makers: dict[Key, str] = {}
        self.look_at = NEVER  # at all of our kernel objects
        self.filter_at = NEVER  # at the tables
        self.forward_at = NEVER  # at what iptables forwards
        self._rest_until = -NEVER  # others write rules all the time, perhaps

    def tell(self, notices: Sequence[Notice]) -> None:
        """Leave what the kernel told."""
        self._notices.extend(notices)

    def hear(self, now: float, mirror: dict[Key, KernelObject] | None, underlay: str) -> bool:
        """Judge what was left by what should be there; return whether notices were lost.

        Without a ``mirror`` everything is in doubt already.
        """
        doubtful: set[Key] = set()
        unmarked: set[Key] = set()
        is_lossy = False
        while self._notices:
            notice = self._notices.popleft()
            if isinstance(notice, RulesetChange):
                self._hear_ruleset(notice, now)
            elif isinstance(notice, str):
                is_lossy |= notice == OVERFLOW
                doubtful |= {SYSCTLS if notice == SYSCTL else (notice,)} & {SYSCTLS, (OVERFLOW,)}
            elif mirror is not None and (
                self._is_lost(notice) or is_news(notice, mirror, underlay)
            ):
                key = SYSCTLS if notice.key[0] == "forwarding" else notice.key
                (unmarked if _is_unmarked_link(notice) else doubtful).add(key)
                if notice.by:
                    self._makers[notice.key] = notice.by
        # A device of ours has no mark for a moment while it is made: a look at the
        # devices alone is enough then, and saves a dump of everything at each join.
        if unmarked and not self._is_as_left(unmarked):
            doubtful |= unmarked
        if mirror is not None:
            soonest = (self._pace.next_at(now, key) for key in doubtful)
            self.look_at = min(self.look_at, *soonest, NEVER)
        return is_lossy

    def _hear_ruleset(self, notice: RulesetChange, now: float) -> None:
        if not notice.tables.isdisjoint(_OUR_TABLES):
            self._rulesets.append(notice)
            soonest_at = max(self._pace.next_at(now, FILTER), self._rest_until)
            self.filter_at = min(self.filter_at, soonest_at)
        if not notice.tables.isdisjoint(FORWARD_TABLES):
            soonest_at = max(self._pace.next_at(now, SYSCTLS), self._rest_until)
            self.forward_at = min(self.forward_at, soonest_at)

    def looked(self) -> dict[Key, str]:
        """Forget the doubts about objects; return who changed which, as far as was told."""
        makers, self._makers = self._makers, {}
        self.look_at = NEVER
        return makers

    def take_filter(self, now: float) -> bool:
        """Return whether to look at the table now; whatever comes of it, once."""
        is_due = now >= self.filter_at
        if is_due:
            self.filter_at = NEVER
        return is_due

    def take_forward(self, now: float) -> bool:
        """Return whether to look at iptables' chains now; whatever comes of it, once."""
        is_due = now >= self.forward_at
        if is_due:
            self.forward_at = NEVER
        return is_due

    def rest(self, begun_at: float, now: float) -> None:
        """Look at the table no more for a while, in proportion to what a look takes."""
        self._rest_until = max(self._rest_until, rest_until(begun_at, now))

    def looked_at_filter(self) -> list[RulesetChange]:
        """Forget the doubts about the table; return the transactions that touched it."""
        told = [each for each in self._rulesets if TABLE in each.tables]
        self._rulesets.clear()
        self.filter_at = NEVER
        return told


def _is_unmarked_link(notice: Change) -> bool:
    return notice.verb == "set" and notice.key[0] == "link" and notice.item is None


def named(makers: Iterable[str], most: int = 3) -> str:
    """Return the makers as the end of a clause: empty, or a comma and up to ``most`` of them."""
    known = list(dict.fromkeys(maker for maker in makers if maker))
    more = [f"and {len(known) - most} more"] if len(known) > most else []
    return "".join(f", {text}" for text in (*known[:most], *more))
