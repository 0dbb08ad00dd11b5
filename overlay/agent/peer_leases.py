"""Which leases this node has as peers, by what a snapshot says; those held back are among them."""

from collections.abc import Collection, Mapping

from overlay.agent.status import Snapshot
from overlay.model.lease import Lease
from overlay.model.versioned import changed_keys

_NONE: Mapping[str, Lease] = {}


def peer_leases(snapshot: Snapshot) -> dict[str, Lease]:
    """Return the leases that are peers, by key."""
    if snapshot.view is None:
        return {}
    keys = {*snapshot.view.leases, *_held(snapshot)}
    found = ((key, peer_lease(snapshot, key)) for key in keys)
    return {key: lease for key, lease in found if lease is not None}


def peer_lease(snapshot: Snapshot, key: str) -> Lease | None:
    """Return the lease of that key if it is a peer, else None."""
    if snapshot.site is None or snapshot.view is None:
        return None
    if key == snapshot.site.own.subnet.key or key in snapshot.problems:
        return None
    lease = snapshot.view.leases.get(key) or _held(snapshot).get(key)
    return None if lease is None or lease.is_vacant else lease


def differing_peers(before: Snapshot, now: Snapshot) -> Collection[str] | None:
    """Return at least the keys of leases that are peers in one of both alone, or changed.

    None where it may be any, for the node itself is another. Costs what
    changed, and what is held.
    """
    if before.site is not now.site or before.view is None or now.view is None:
        return None
    keys = {
        *changed_keys(before.view.leases, now.view.leases),
        *changed_keys(before.problems, now.problems),
    }
    if before.held is not now.held:
        keys |= {*_held(before), *_held(now)}
    return keys


def _held(snapshot: Snapshot) -> Mapping[str, Lease]:
    return snapshot.held.leases if snapshot.held is not None else _NONE
