"""Leases as people and programs read them, and whom a name or an address belongs to.

Decides nothing and does no I/O: views in, records out. docs/cli.md has the form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Any, Final, Literal

from overlay.model.address import IPAddress
from overlay.model.errors import LeaseFormatError
from overlay.model.lease import Lease, LeaseView
from overlay.model.subnet import parse_subnet

COLUMNS: Final = ("SUBNET", "NODE", "PUBLIC", "BACKEND", "MAC", "KIND", "SINCE", "UNTIL")


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """A lease's end: ``seconds`` from ``now``; None for one that never ends."""

    seconds: int | None
    now: datetime

    @property
    def end(self) -> str | None:
        """Return when the lease ends, RFC 3339 in UTC to the second."""
        if self.seconds is None:
            return None
        return (self.now + timedelta(seconds=self.seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def record(lease: Lease, left: TimeLeft | None = None) -> dict[str, Any]:
    """Return the lease as a document; without ``left`` its end is null."""
    attributes, owner = lease.attributes, lease.attributes.owner
    macs = (data.get("VtepMAC") for data in attributes.backend_data.values())
    return {
        "key": lease.subnet.key,
        "subnet": str(lease.subnet),
        "node": lease.node,
        "node_id": owner.node_id if owner else None,
        "public": [str(address) for address in attributes.public.values()],
        "backend": None if lease.is_vacant else attributes.backend_type,
        "mac": next((mac for mac in macs if isinstance(mac, str)), None),
        "kind": kind(lease),
        "permanent": lease.is_permanent,
        "since": (owner.claimed_at or None) if owner else None,
        "expires_in_s": left.seconds if left else None,
        "expires_at": left.end if left else None,
    }


def row(document: Mapping[str, Any]) -> list[object]:
    """Return a record as a row under COLUMNS."""
    until = "never" if document["permanent"] else document["expires_at"]
    names = ("subnet", "node", "public", "backend", "mac", "kind", "since")
    return [*(document[name] for name in names), until]


def kind(lease: Lease) -> str:
    """Return ``reservation``, ``flannel`` (a lease that flannel wrote) or ``lease``."""
    if lease.is_vacant:
        return "reservation"
    return "lease" if lease.attributes.owner is not None else "flannel"


def holders(view: LeaseView, text: str, *, inside: bool) -> list[Lease]:
    """Return the leases that ``text`` names, in order of their keys.

    A node's name or id, its underlay address, a subnet or a lease key; with
    ``inside`` also any address of a subnet, or a part of one.
    """
    leases = sorted(view.leases.values(), key=lambda lease: lease.subnet.key)
    address = _address(text)
    if address is not None:
        found = [lease for lease in leases if address in lease.attributes.public.values()]
        within = [lease for lease in leases if address in lease.subnet] if inside else []
        return within or found or _named(leases, text)
    try:
        subnet = parse_subnet(text)
    except LeaseFormatError:
        return _named(leases, text)
    asked = set(subnet.networks())
    if exact := [lease for lease in leases if asked <= set(lease.subnet.networks())]:
        return exact
    return [lease for lease in leases if inside and lease.subnet.overlaps(subnet)]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one lease between two views."""

    event: Literal["held", "added", "changed", "removed"]
    lease: Lease


def changes(before: LeaseView | None, after: LeaseView) -> list[Change]:
    """Return what happened between two views, by lease key; all is ``held`` without the first."""
    if before is None:
        return [Change("held", after.leases[key]) for key in sorted(after.leases)]
    found: list[Change] = []
    for key in sorted({*before.leases, *after.leases}):
        old, new = before.leases.get(key), after.leases.get(key)
        if new is None and old is not None:
            found.append(Change("removed", old))
        elif new is not None and old is None:
            found.append(Change("added", new))
        elif new is not None and old is not None and _told(old) != _told(new):
            found.append(Change("changed", new))
    return found


def _told(lease: Lease) -> object:
    """Return what a change is made of: a renewal alone is none."""
    return lease.attributes, lease.is_permanent


def _named(leases: list[Lease], text: str) -> list[Lease]:
    def names(lease: Lease) -> set[str]:
        owner = lease.attributes.owner
        return {owner.node_id, owner.node_name} if owner else set()

    return [lease for lease in leases if text and text in names(lease)]


def _address(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
