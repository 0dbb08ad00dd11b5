"""Is a history of claims, renewals, releases and views linearizable for ownership?

The object: each subnet belongs to one client or to none, and subnets that
overlap never to two clients. Its operations take effect at one moment between
their beginning and their end:

- ``acquire`` ok: nobody else holds anything that overlaps; the caller holds it then.
- ``renew`` ok: the caller holds it by the very write that it names (``basis``),
  without a break. Lost: it does not.
- ``release`` ok: as renew, and nobody holds it afterwards; or it was gone already.
  Lost: the caller does not hold it by that write, if only because this very
  call, whose first answer was lost, had ended it before somebody else claimed it.
- ``view``: what it shows is what is held.

By itself a holding ends no earlier than its time to live after the *beginning*
of the operation that last wrote it; it may end any time later. What an
operation of unknown outcome may have done, it may also do at any later time.
An acquire may, while it runs, claim what it then gives up again, and drop what
the same client held before it.

The search keeps every state that the store may be in and goes through the
history's beginnings and ends in order of time; at an end it keeps the states in
which that operation took effect (the search of Wing and Gong, 1993, in the
"just in time" form of Lowe, 2017). It is exact for this object. Subnets that
do not overlap one another, not even by way of a third one, are judged apart
(linearizability is local: Herlihy and Wing, 1990).
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from overlay.model.subnet import Subnet
from tests.history.record import NEVER, Holding, Operation, read_history

_GHOST: Final = -1  # written by nobody who will ever name it
_MOST_STATES: Final = 200_000


class _Held(NamedTuple):
    """A holding: ``token`` is the operation that wrote it; it may end from ``until_s`` on."""

    subnet: Subnet
    client: str
    token: int
    until_s: float


class _State(NamedTuple):
    """One thing that may be the case: what is held, and which operations under way are done."""

    held: frozenset[_Held]
    done: frozenset[int]


@dataclass(frozen=True, slots=True)
class Violation:
    """The operation that no state explains, and the states there were just before it."""

    operation: Operation
    before: tuple[str, ...]

    def __str__(self) -> str:
        lines = "\n".join(f"  or {state}" for state in self.before)
        return f"no order of the operations explains\n  {self.operation}\nheld before:\n{lines}"


def check(operations: Iterable[Operation]) -> Violation | None:
    """Return the first operation, by its end, that cannot be explained; None if all can."""
    history = tuple(operations)
    found = [v for group in _groups(history) if (v := _Search(history, group).run()) is not None]
    return min(found, key=lambda violation: violation.operation.ended_s, default=None)


@dataclass
class _Search:
    """The search over one group of subnets that overlap."""

    history: Sequence[Operation]
    group: frozenset[Subnet]
    _now_s: float = 0.0
    _pending: dict[int, Operation] = field(default_factory=dict)
    _loose: list[Operation] = field(default_factory=list)  # renewals, releases: done or not
    _ghosts: dict[str, list[Operation]] = field(default_factory=dict)  # acquires that may write

    def run(self) -> Violation | None:
        states = {_State(frozenset(), frozenset())}
        for at_s, is_end, operation in self._events():
            self._now_s = at_s
            if not is_end:
                self._begin(operation)
                continue
            if operation.kind == "acquire" and operation.outcome == "ok":
                # What it dropped and claimed on its way, it did by now.
                states = self._closure(states)
                self._ghosts[operation.client].remove(operation)
            if operation.number not in self._pending:
                continue
            after = {s for s in self._closure(states) if operation.number in s.done}
            if operation.kind == "release" and operation.outcome == "lost":
                self._loose.remove(operation)
            if not after:
                return Violation(operation, tuple(sorted({_shown(s.held) for s in states})[:8]))
            del self._pending[operation.number]
            states = {_State(s.held, s.done - {operation.number}) for s in after}
        return None

    def _events(self) -> list[tuple[float, bool, Operation]]:
        """Return beginnings and ends by time; at one instant beginnings first."""
        mine = [o for o in self.history if o.kind in {"acquire", "view"} or o.subnet in self.group]
        events = [(o.began_s, False, o) for o in mine]
        events += [(o.ended_s, True, o) for o in mine if o.ended_s != NEVER]
        return sorted(events, key=lambda event: (event[0], event[1], event[2].number))

    def _begin(self, operation: Operation) -> None:
        if operation.kind == "acquire":
            self._ghosts.setdefault(operation.client, []).append(operation)
        maybe = ("unknown", "lost") if operation.kind == "release" else ("unknown",)
        if operation.kind in {"renew", "release"} and operation.outcome in maybe:
            self._loose.append(operation)
        is_here = operation.kind == "view" or operation.subnet in self.group
        if is_here and operation.outcome in {"ok", "lost"}:
            self._pending[operation.number] = operation

    def _closure(self, states: set[_State]) -> set[_State]:
        """Return all states that can be reached by now."""
        reached, todo = set(states), list(states)
        while todo:
            for following in self._steps(todo.pop()):
                if following not in reached:
                    reached.add(following)
                    todo.append(following)
            if len(reached) > _MOST_STATES:
                msg = f"more than {_MOST_STATES} states at {self._now_s:.3f} s: a shorter history?"
                raise RuntimeError(msg)
        return reached

    def _steps(self, state: _State) -> Iterator[_State]:
        held, done = state
        for each in held:
            if each.until_s <= self._now_s or self._may_drop(each):
                yield _State(held - {each}, done)
            for loose in self._loose:
                if loose.basis == each.token and loose.subnet == each.subnet:
                    yield _State(_rewritten(held, each, loose), done)
        for operation in self._pending.values():
            if operation.number in done:
                continue
            seen = self._haunted(operation, held) if operation.kind == "view" else held
            after = self._applied(operation, seen)
            if after is not None:
                yield _State(after, done | {operation.number})

    def _may_drop(self, held: _Held) -> bool:
        """Return whether an acquire of the same client, begun later, may let go of it."""
        return any(held.token < ghost.number for ghost in self._ghosts.get(held.client, ()))

    def _haunted(self, view: Operation, held: frozenset[_Held]) -> frozenset[_Held]:
        """Return ``held`` with what acquires may have claimed without saying so, as ``view``
        shows.

        Such a claim only ever takes something from others, so it need not be
        thought of before somebody sees it.
        """
        found = held
        for subnet, client in self._visible(view):
            is_known = any((h.subnet, h.client) == (subnet, client) for h in found)
            if not is_known and self._ghosts.get(client) and _is_open(found, subnet, client):
                found |= {_Held(subnet, client, _GHOST, 0.0)}
        return found

    def _applied(self, operation: Operation, held: frozenset[_Held]) -> frozenset[_Held] | None:
        """Return what is held after ``operation``; None where it cannot take effect."""
        if operation.kind == "view":
            return (
                held if self._visible(operation) == {(h.subnet, h.client) for h in held} else None
            )
        subnet = operation.subnet
        assert subnet is not None
        mine = next((h for h in held if h.subnet == subnet), None)
        if operation.kind == "acquire":
            if not _is_open(held, subnet, operation.client):
                return None
            return frozenset(h for h in held if h.subnet != subnet) | {_written(operation, subnet)}
        if mine is not None and mine.token == operation.basis:
            return None if operation.outcome == "lost" else _rewritten(held, mine, operation)
        is_fine = operation.outcome == "lost" or (operation.kind == "release" and mine is None)
        return held if is_fine else None

    def _visible(self, view: Operation) -> frozenset[tuple[Subnet, str]]:
        """Return what a view says of this group, as agents read it: the older lease stands."""
        here = [h for h in view.holdings if h.subnet in self.group]
        return frozenset(
            (h.subnet, h.client) for h in here if not any(_shadows(other, h) for other in here)
        )


def _shadows(other: Holding, holding: Holding) -> bool:
    return (
        other.client != holding.client
        and other.create_revision < holding.create_revision
        and other.subnet.overlaps(holding.subnet)
    )


def _is_open(held: Iterable[_Held], subnet: Subnet, client: str) -> bool:
    """Return whether nobody but ``client`` holds anything that overlaps ``subnet``."""
    return not any(h.client != client and h.subnet.overlaps(subnet) for h in held)


def _written(operation: Operation, subnet: Subnet) -> _Held:
    until_s = operation.began_s + operation.ttl_s
    return _Held(subnet, operation.client, operation.number, until_s)


def _rewritten(held: frozenset[_Held], old: _Held, operation: Operation) -> frozenset[_Held]:
    rest = held - {old}
    return rest if operation.kind == "release" else rest | {_written(operation, old.subnet)}


def _groups(history: Sequence[Operation]) -> list[frozenset[Subnet]]:
    """Return the subnets of a history, those together that overlap, also by way of others."""
    subnets = {o.subnet for o in history if o.subnet is not None}
    subnets |= {h.subnet for o in history for h in o.holdings}
    groups: list[frozenset[Subnet]] = []
    for subnet in subnets:
        near = [g for g in groups if any(subnet.overlaps(other) for other in g)]
        groups = [g for g in groups if g not in near]
        groups.append(frozenset({subnet}).union(*near))
    return sorted(groups, key=lambda group: min(subnet.key for subnet in group))


def _shown(held: Iterable[_Held]) -> str:
    shown = sorted(f"{h.subnet}: {h.client} by #{h.token}, until {h.until_s:.3f}" for h in held)
    return "; ".join(shown) or "nothing"


def main(argv: Sequence[str]) -> int:
    """Judge the history in files; return 1 when it is not linearizable."""
    parser = argparse.ArgumentParser(description="Judge a recorded history of lease operations.")
    parser.add_argument("files", nargs="+", type=Path)
    operations = read_history(parser.parse_args(argv).files)
    violation = check(operations)
    print(violation or f"{len(operations)} operations: linearizable")
    return 1 if violation is not None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
