"""Who holds an address range: subnets of leases, asked for overlaps.

With one prefix length, the usual case, a question costs O(1).
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from overlay.model.address import IPNetwork, overlap
from overlay.model.lease import Lease


class Networks:
    """Subnets of leases that do not overlap, asked for those that another one would overlap."""

    def __init__(self) -> None:
        self._holders: dict[IPNetwork, str] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()

    def add(self, lease: Lease) -> None:
        """Note the lease's subnets; a network that is there already gets a new holder."""
        for network in lease.subnet.networks():
            self._holders[network] = lease.subnet.key
            self._lengths[network.version, network.prefixlen] += 1

    def remove(self, lease: Lease) -> None:
        """Forget the lease's subnets. Raises KeyError where they were never noted."""
        for network in lease.subnet.networks():
            del self._holders[network]
            self._lengths[network.version, network.prefixlen] -= 1

    def overlapping(self, lease: Lease) -> Iterator[str]:
        """Yield the keys of leases that ``lease`` overlaps; one twice where both families do."""
        for network in lease.subnet.networks():
            yield from self._overlapping(network)

    def _overlapping(self, network: IPNetwork) -> Iterable[str]:
        lengths = [
            length
            for (version, length), count in self._lengths.items()
            if count and version == network.version
        ]
        for length in lengths:
            if length <= network.prefixlen:
                span = network
                if length < network.prefixlen:  # the same length, the usual case, costs nothing
                    span = network.supernet(new_prefix=length)
                holder = self._holders.get(span)
                if holder is not None:
                    yield holder
        if any(length > network.prefixlen for length in lengths):
            for other, holder in self._holders.items():
                if (
                    other.version == network.version
                    and other.prefixlen > network.prefixlen
                    and overlap(other, network)
                ):
                    yield holder
