"""Who holds what, from leases: what the fabric knows of each node, and the pods of this one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overlay.model.address import Family, IPAddress, family_of
from overlay.model.attachment import Attachment
from overlay.model.lease import Lease
from overlay.trace.facts import Holder


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Who holds what. ``own`` is None where that is not known; ``notes`` say what is missing.

    ``has_agent`` says whether this node's agent told it.
    """

    own: Holder | None
    holders: tuple[Holder, ...]
    attachments: tuple[Attachment, ...]
    is_complete: bool = True
    notes: tuple[str, ...] = ()
    has_agent: bool = True


def lease_holder(lease: Lease) -> Holder:
    """Return who holds ``lease``."""
    attributes = lease.attributes
    return Holder(
        node=lease.node,
        networks=tuple(lease.subnet.networks()),
        public=attributes.public,
        macs=texts({f: d.get("VtepMAC") for f, d in attributes.backend_data.items()}),
        vnis=numbers({f: d.get("VNI") for f, d in attributes.backend_data.items()}),
        backend=attributes.backend_type,
    )


def has_pod(holder: Holder, address: IPAddress) -> bool:
    """Return whether ``address`` is of the holder's subnet."""
    network = holder.network(family_of(address))
    return network is not None and address in network


def texts(found: Mapping[Family, Any]) -> dict[Family, str]:
    """Return what is a text, in lower case; leases may hold anything."""
    return {family: value.lower() for family, value in found.items() if isinstance(value, str)}


def numbers(found: Mapping[Family, Any]) -> dict[Family, int]:
    """Return what is a number."""
    return {family: value for family, value in found.items() if isinstance(value, int)}
