"""Which peers came, changed and went between two looks, as events in an operator's words.

Decides nothing and does no I/O: two sets of peers in, events out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from overlay.agent.peer_leases import differing_peers, peer_lease, peer_leases
from overlay.agent.status import Snapshot
from overlay.model.event import Kind
from overlay.model.lease import Lease
from overlay.model.subnet import Subnet

_ONE_BY_ONE: Final = 16  # peers; more at once become one event
_NAMED: Final = 5

Peers = Mapping[str, Lease]
Note = tuple[Kind, str, dict[str, Any]]


def step(before: Snapshot, now: Snapshot) -> Iterator[Note]:
    """Yield what to note of peers between two snapshots; costs what changed, on one site.

    Where there was no site before, all peers were there at the start.
    """
    if before.site is None:
        return changes(None, peer_leases(now))
    keys = differing_peers(before, now)
    if keys is None:
        return changes(peer_leases(before), peer_leases(now))
    return changes(*(_chosen(snapshot, keys) for snapshot in (before, now)))


def _chosen(snapshot: Snapshot, keys: Iterable[str]) -> dict[str, Lease]:
    found = ((key, peer_lease(snapshot, key)) for key in keys)
    return {key: lease for key, lease in found if lease is not None}


def changes(before: Peers | None, after: Peers) -> Iterator[Note]:
    """Yield what to note; where there is no ``before`` all peers were there at the start."""
    if before is None:
        if after:
            yield _several(Kind.PEER_ADDED, "at the start", list(after.values()))
        return
    added = [lease for key, lease in after.items() if key not in before]
    removed = [lease for key, lease in before.items() if key not in after]
    changed = [
        (before[key], lease)
        for key, lease in after.items()
        if key in before and before[key] is not lease and _told(before[key]) != _told(lease)
    ]
    yield from _each(Kind.PEER_REMOVED, "went", removed)
    yield from _each(Kind.PEER_ADDED, "came", added)
    if len(changed) > _ONE_BY_ONE:
        yield _several(Kind.PEER_CHANGED, "changed", [new for _, new in changed])
        return
    for old, new in changed:
        yield Kind.PEER_CHANGED, f"{_named(new)} changed: {_difference(old, new)}", _facts(new)


def held(before: Peers, after: Peers) -> Iterator[Note]:
    """Yield what to note when the peers that vanished and are kept are others than before."""
    new = [lease for key, lease in after.items() if key not in before]
    if new:
        yield _several(Kind.PEER_HELD, "kept though gone from the store", new)


def _each(kind: Kind, verb: str, leases: Sequence[Lease]) -> Iterator[Note]:
    if len(leases) > _ONE_BY_ONE:
        yield _several(kind, verb, leases)
        return
    for lease in leases:
        yield kind, f"{_named(lease)} {verb}", _facts(lease)


def _several(kind: Kind, verb: str, leases: Sequence[Lease]) -> Note:
    names = [lease.node for lease in sorted(leases, key=lambda lease: _place(lease.subnet))]
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    noun = "peer" if len(names) == 1 else "peers"
    return kind, f"{len(names)} {noun} {verb}: {shown}", {"count": len(names), "nodes": names}


def _place(subnet: Subnet) -> list[int]:
    """Return what orders subnets as people count."""
    return [int(network.network_address) for network in subnet.networks()]


def _named(lease: Lease) -> str:
    return f"{lease.node} with {lease.subnet} at {_addresses(lease)}"


def _addresses(lease: Lease) -> str:
    return ", ".join(str(address) for address in lease.attributes.public.values()) or "no address"


def _facts(lease: Lease) -> dict[str, Any]:
    public = [str(address) for address in lease.attributes.public.values()]
    return {"node": lease.node, "subnet": str(lease.subnet), "public": public}


def _told(lease: Lease) -> dict[str, object]:
    """Return what a change is made of: a renewal alone is none."""
    attributes, owner = lease.attributes, lease.attributes.owner
    return {
        "node": lease.node,
        "identity": owner.node_id if owner else None,
        "address": _addresses(lease),
        "backend": attributes.backend_type,
        "backend data": {str(f): dict(data) for f, data in attributes.backend_data.items()},
    }


def _difference(old: Lease, new: Lease) -> str:
    before, after = _told(old), _told(new)
    return "; ".join(f"{name} was {before[name]}" for name in after if before[name] != after[name])
