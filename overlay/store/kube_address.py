"""Whether another node stands under an address: asked again at the cost of what changed since."""

from collections.abc import Mapping
from dataclasses import dataclass

from overlay.ipam.claim import Duplicate
from overlay.model.address import Family, IPAddress
from overlay.model.lease import Lease
from overlay.model.subnet import Subnet
from overlay.model.versioned import changed_keys


@dataclass(frozen=True, slots=True)
class _Look:
    """What was asked last, and the keys of the leases that were in the way."""

    leases: Mapping[str, Lease]
    public: Mapping[Family, IPAddress]
    own: Subnet
    found: frozenset[str]


class AddressCheck:
    """A node that is refused asks at each change of any node. Any thread may call."""

    def __init__(self) -> None:
        self._last: _Look | None = None

    def clash(
        self, leases: Mapping[str, Lease], public: Mapping[Family, IPAddress], own: Subnet
    ) -> Duplicate | None:
        """Return the oldest lease beside that of ``own`` under an address in ``public``."""
        last = self._last
        if last is not None and (last.public, last.own) == (public, own):
            keys = {*last.found, *changed_keys(last.leases, leases)}
        else:
            keys = {*leases}
        found: dict[str, Duplicate] = {}
        for key in keys - {own.key}:
            lease = leases.get(key)
            address = _shared(lease, public) if lease is not None else None
            if lease is not None and address is not None:
                found[key] = Duplicate(lease, address)
        self._last = _Look(leases, dict(public), own, frozenset(found))
        oldest = min(found, key=lambda key: (leases[key].create_revision, key), default=None)
        return found[oldest] if oldest is not None else None

    def forget(self) -> None:
        """Drop what was seen: nobody asks again soon."""
        self._last = None


def _shared(lease: Lease, public: Mapping[Family, IPAddress]) -> IPAddress | None:
    theirs = lease.attributes.public
    return next((ip for family, ip in public.items() if theirs.get(family) == ip), None)
