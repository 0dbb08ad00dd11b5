"""What leases take up that no two nodes have in common: asked whether a lease's place is free."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from overlay.model.address import IPNetwork
from overlay.model.lease import Lease
from overlay.model.versioned import changed_keys

_FEW: Final = 4  # leases of a step, beyond which the index is asked


class Places:
    """Brought in step lease by lease: a change costs what it changes."""

    def __init__(self) -> None:
        self._leases: Mapping[str, Lease] = {}
        self._taken: Counter[object] = Counter()
        self._lengths: Counter[tuple[int, int]] = Counter()  # of networks: version and prefix
        self._starts: dict[int, list[int]] | None = None  # of networks, made when it is asked for
        # Leases that came or changed in the last step; None where they are many.
        self._come: list[Lease] | None = None
        self._came: set[object] = set()  # what they take up, but for networks
        self.occupied = 0  # leases that are no mere reservations

    @property
    def is_begun(self) -> bool:
        """Return whether any leases were followed yet."""
        return bool(self._leases)

    def follow(self, leases: Mapping[str, Lease]) -> None:
        """Take ``leases`` for all there is."""
        before, self._leases = self._leases, leases
        come: list[Lease] = []
        for key in changed_keys(before, leases):
            self._starts = None
            if key in leases and len(come) <= _FEW:
                come.append(leases[key])
            for found, change in ((before.get(key), -1), (leases.get(key), 1)):
                if found is not None:
                    self._count(found, change)

        self._come = come if len(come) <= _FEW else None
        self._came = {mark for lease in self._come or () for mark in _marks(lease)}

    def may_be_taken_since(self, lease: Lease) -> bool:
        """Return whether the place of ``lease``, free before the last step, may be taken by it.

        Then ``is_taken`` tells. A step in which leases only went takes nothing.
        """
        if self._come is None:
            return True
        if not self._come:
            return False
        return any(mark in self._came for mark in _marks(lease)) or any(
            lease.subnet.overlaps(other.subnet) for other in self._come
        )

    def is_taken(self, lease: Lease) -> bool:
        """Return whether another lease has an address, a VTEP, the node or a network of it."""
        return any(self._taken[mark] for mark in _marks(lease)) or any(
            self._overlaps(network) for network in lease.subnet.networks()
        )

    def _count(self, lease: Lease, change: int) -> None:
        self.occupied += 0 if lease.is_vacant else change
        for mark in (*_marks(lease), *lease.subnet.networks()):
            self._taken[mark] += change
            if not self._taken[mark]:
                del self._taken[mark]
        for network in lease.subnet.networks():
            self._lengths[network.version, network.prefixlen] += change

    def _overlaps(self, network: IPNetwork) -> bool:
        for (version, length), count in self._lengths.items():
            if not count or version != network.version:
                continue
            if length > network.prefixlen:  # unusual: one fabric has one length
                if self._has_inside(network):
                    return True
            elif self._taken[network.supernet(new_prefix=length)]:
                return True
        return False

    def _has_inside(self, network: IPNetwork) -> bool:
        """Return whether any network of a lease begins inside ``network``."""
        if self._starts is None:
            found: dict[int, list[int]] = {4: [], 6: []}
            for lease in self._leases.values():
                for each in lease.subnet.networks():
                    found[each.version].append(int(each.network_address))
            self._starts = {version: sorted(starts) for version, starts in found.items()}
        starts = self._starts[network.version]
        place = bisect_left(starts, int(network.network_address))
        return place < len(starts) and starts[place] <= int(network.broadcast_address)


def _marks(lease: Lease) -> Iterator[object]:
    """Yield what no two nodes have in common: addresses, VTEP MAC addresses, identity."""
    attributes = lease.attributes
    yield from attributes.public.values()
    for family, data in attributes.backend_data.items():
        if isinstance(data.get("VtepMAC"), str):
            yield (family, data["VtepMAC"].lower())
    if attributes.owner is not None:
        yield attributes.owner.node_id
