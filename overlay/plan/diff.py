"""The difference between what should be in the kernel and what is.

Safe at every step: a pass may be cut off after any operation, and the next
one goes on from what it then finds. ``reachable`` states what "safe" means
for one peer; the properties are in tests/unit/test_diff.py.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from overlay.model.errors import PlanConflictError
from overlay.model.kernel import (
    FdbEntry,
    ForeignRoute,
    KernelObject,
    Key,
    LinkAddress,
    Neighbor,
    Op,
    Route,
    Rule,
    UnreachableRoute,
    VxlanLink,
)

# Each kind refers only to kinds before it, so this is the way in and, in
# reverse, the way out. The kernel sends as soon as a route exists, hence the
# route behind what it needs; and it rewrites frames as soon as a neighbor
# changes, hence the forwarding entry of a new VTEP MAC before the neighbor
# that names it (docs/decisions/0005).
_RANK: Final[dict[type, int]] = {
    VxlanLink: 0,
    LinkAddress: 1,
    FdbEntry: 2,
    Neighbor: 3,
    Route: 4,
    ForeignRoute: 4,
    Rule: 5,
    UnreachableRoute: 6,
}


def diff(desired: Iterable[KernelObject], observed: Iterable[KernelObject]) -> tuple[Op, ...]:
    """Return the operations that turn ``observed`` into ``desired``, as ``difference`` does.

    Raises PlanConflictError when two desired objects share a kernel key.
    """
    return difference(_by_key(desired), {item.key: item for item in observed})


def difference(
    wanted: Mapping[Key, KernelObject], found: Mapping[Key, KernelObject]
) -> tuple[Op, ...]:
    """Return the operations that turn ``found`` into ``wanted``, both by kernel key.

    Everything is set before anything is deleted, so a peer that comes back
    with a new VTEP MAC or address is never unreachable in between. Kinds come
    in the order of ``_RANK`` and, deleted, in its reverse; within a kind the
    order of the arguments is kept. Equal arguments give an empty tuple. Only
    what somebody made so that the kernel replaces it in silence by nothing
    goes first (``FdbEntry.is_stuck``).
    """
    sets = [item for key, item in wanted.items() if found.get(key) != item]
    dels = [item for key, item in found.items() if key not in wanted]
    stuck = [found[item.key] for item in sets if _is_stuck(found.get(item.key))]
    sets.sort(key=_rank)
    dels.sort(key=_rank, reverse=True)
    return (
        *(Op("del", item) for item in stuck),
        *(Op("set", item) for item in sets),
        *(Op("del", item) for item in dels),
    )


def _by_key(desired: Iterable[KernelObject]) -> dict[Key, KernelObject]:
    wanted: dict[Key, KernelObject] = {}
    for item in desired:
        other = wanted.setdefault(item.key, item)
        if other is not item and other != item:
            msg = f"two desired objects share one kernel key: {other} and {item}"
            raise PlanConflictError(msg)
    return wanted


def _is_stuck(item: KernelObject | None) -> bool:
    return isinstance(item, FdbEntry) and item.is_stuck


def _rank(item: KernelObject) -> int:
    return _RANK[type(item)]
