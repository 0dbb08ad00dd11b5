"""Cross-check of a recorded history with the store's own: every change, by revision.

Each write names the operation that it was made by (the test's clients put its
number into the lease's value), so that nothing has to be guessed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from overlay.model.subnet import Subnet
from tests.history.record import NEVER, Operation


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a key; without a client it was deleted. ``seen_s`` is when it was told."""

    revision: int
    subnet: Subnet
    client: str | None = None
    operation: int = 0
    seen_s: float = NEVER


@dataclass(frozen=True, slots=True)
class _Live:
    """A key that is there: its last write, and the revision that it was created at."""

    last: Change
    created: int


def audit(changes: Iterable[Change], operations: Iterable[Operation]) -> list[str]:
    """Return what is wrong, each a sentence; empty when all is in order.

    - A key is written over only by the client that holds it.
    - Of two keys that overlap and belong to two clients, the younger one is
      neither confirmed nor written again while the older one lives and is renewed.
    - Every write was made by an operation that had begun by then, a renewal
      writes once, and what a client was told it wrote is there.
    - A write that was confirmed before another operation began has the lower revision.
    - Nothing vanishes before its time unless its client was about to drop it.
    """
    history = sorted(changes, key=lambda change: change.revision)
    known = {operation.number: operation for operation in operations}
    problems: list[str] = []
    live: dict[Subnet, _Live] = {}
    for change in history:
        before = live.pop(change.subnet, None)
        if change.client is None:
            problems += _vanished(change, before, known)
            continue
        problems += _written(change, before, known)
        created = before.created if before is not None else change.revision
        problems += _crowded(change, created, live, known)
        live[change.subnet] = _Live(change, created)
    return problems + _confirmed(history, known) + _repeated(history, known) + _order(known)


def _written(change: Change, before: _Live | None, known: Mapping[int, Operation]) -> list[str]:
    problems = []
    if before is not None and before.last.client != change.client:
        problems.append(
            f"revision {change.revision}: {change.client} wrote over {change.subnet} of "
            f"{before.last.client} (revision {before.last.revision})"
        )
    operation = known.get(change.operation)
    if operation is None or operation.client != change.client or operation.began_s > change.seen_s:
        problems.append(
            f"revision {change.revision}: {change.subnet} was written by #{change.operation} of "
            f"{change.client}, which did no such thing by then"
        )
    return problems


def _crowded(
    change: Change, created: int, live: Mapping[Subnet, _Live], known: Mapping[int, Operation]
) -> list[str]:
    """Judge the rewriting of a key beside another client's that overlaps."""
    problems = []
    if created == change.revision:
        return []  # it may be there until its maker sees the older one
    for other in live.values():
        if other.last.client == change.client or not other.last.subnet.overlaps(change.subnet):
            continue
        is_younger = created > other.created
        if is_younger or _is_confirmed(other, known):
            problems.append(
                f"revision {change.revision}: {change.client} renews {change.subnet} (created at "
                f"{created}) beside {other.last.subnet} of {other.last.client} (created at "
                f"{other.created})"
            )
    return problems


def _is_confirmed(live: _Live, known: Mapping[int, Operation]) -> bool:
    operation = known.get(live.last.operation)
    return operation is not None and operation.revision == live.last.revision


def _vanished(change: Change, before: _Live | None, known: Mapping[int, Operation]) -> list[str]:
    if before is None:
        return [f"revision {change.revision}: {change.subnet} is deleted but was not there"]
    writer = known.get(before.last.operation)
    if writer is None or change.seen_s >= writer.began_s + writer.ttl_s:
        return []
    may_drop = any(
        o.client == writer.client
        and o.began_s <= change.seen_s
        and (o.kind == "acquire" or (o.kind == "release" and o.subnet == change.subnet))
        # A claim may give up what it wrote itself, but for what it returned.
        and (o.number > writer.number or (o is writer and not _is_confirmed(before, known)))
        for o in known.values()
    )
    if may_drop:
        return []
    left_s = writer.began_s + writer.ttl_s - change.seen_s
    problem = (
        f"revision {change.revision}: {change.subnet} of {writer.client} vanished {left_s:.3f} s "
        "before its time, and its client did nothing to it"
    )
    return [problem]


def _confirmed(history: Iterable[Change], known: Mapping[int, Operation]) -> list[str]:
    there = {(change.revision, change.subnet, change.operation) for change in history}
    return [
        f"{operation} was told revision {operation.revision}, where there is no such write"
        for operation in known.values()
        if operation.outcome == "ok"
        and operation.kind in {"acquire", "renew"}
        and operation.subnet is not None
        and (operation.revision, operation.subnet, operation.number) not in there
    ]


def _repeated(history: Iterable[Change], known: Mapping[int, Operation]) -> list[str]:
    renewals = sorted(
        (change.operation, change.revision)
        for change in history
        if change.client is not None
        and (operation := known.get(change.operation)) is not None
        and operation.kind == "renew"
    )
    return [
        f"{known[number]} wrote twice: at revisions {first} and {second}"
        for (number, first), (again, second) in pairwise(renewals)
        if number == again
    ]


def _order(known: Mapping[int, Operation]) -> list[str]:
    """Compare the order in time with the order in the store, of all confirmed writes."""
    done = [o for o in known.values() if o.outcome == "ok" and o.revision and o.kind != "view"]
    by_end = sorted(done, key=lambda operation: operation.ended_s)
    problems, latest, position = [], None, 0
    for operation in sorted(done, key=lambda operation: operation.began_s):
        while by_end[position].ended_s < operation.began_s:
            if latest is None or by_end[position].revision > latest.revision:
                latest = by_end[position]
            position += 1
        if latest is not None and latest.revision >= operation.revision:
            problems.append(f"{operation} wrote before {latest}, which had ended already")
    return problems
