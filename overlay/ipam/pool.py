"""Which addresses an attachment gets: one after the other, each again as late as possible."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from overlay.model.address import Family, IPAddress, IPNetwork, family_of
from overlay.model.errors import OverlayError
from overlay.model.subnet import Subnet

# The network's own address is the VTEP's, the next one is the gateway that
# flannel's subnet.env names; the last one of IPv4 is the broadcast address.
_RESERVED_FIRST: Final = 2


class PoolExhaustedError(OverlayError):
    """Every address of a family is in use; ``count`` is how many there are."""

    def __init__(self, network: IPNetwork, count: int) -> None:
        self.count = count
        super().__init__(
            f"subnet {network}: all {count} addresses are in use; `overlayctl ipam list` shows by "
            "whom, and a smaller SubnetLen gives each node more"
        )


class AddressTakenError(OverlayError):
    """An address that was asked for is in use."""


class AddressOutsideError(OverlayError):
    """An address that was asked for is not one that this node may give."""


@dataclass(frozen=True, slots=True)
class AddressRange:
    """What one family of a subnet offers to pods: ``first`` to ``last``, both included."""

    network: IPNetwork

    @property
    def first(self) -> int:
        """Return the first address as a number."""
        return int(self.network.network_address) + _RESERVED_FIRST

    @property
    def last(self) -> int:
        """Return the last address as a number."""
        is_v4 = family_of(self.network) is Family.IPV4
        return int(self.network.broadcast_address) - (1 if is_v4 else 0)

    @property
    def count(self) -> int:
        """Return how many there are."""
        return max(0, self.last - self.first + 1)

    def __contains__(self, address: IPAddress) -> bool:
        return address.version == self.network.version and self.first <= int(address) <= self.last


def allocate(
    subnet: Subnet,
    taken: Collection[IPAddress],
    after: Collection[IPAddress] = (),
    wanted: Sequence[IPAddress] = (),
) -> tuple[IPAddress, ...]:
    """Return one free address for each family of ``subnet``, IPv4 first.

    ``after`` has the address of each family that was given last: the search
    goes on behind it and begins again at the start, so that an address that
    was given back rests as long as possible. ``wanted`` are addresses to be
    given if they are free; a family without a wanted one gets the next.

    Raises PoolExhaustedError, AddressTakenError, AddressOutsideError; nothing
    is to be undone then.
    """
    ranges = {family_of(network): AddressRange(network) for network in subnet.networks()}
    asked: dict[Family, IPAddress] = {}
    for address in wanted:
        family = family_of(address)
        if family not in ranges or address not in ranges[family]:
            msg = f"address {address} is not one of this node's: it gives those of {subnet}"
            raise AddressOutsideError(msg)
        if address in taken:
            msg = f"address {address} is in use"
            raise AddressTakenError(msg)
        if family in asked:
            msg = f"addresses {asked[family]} and {address}: one for each family"
            raise AddressOutsideError(msg)
        asked[family] = address
    last = {family_of(address): address for address in after}
    return tuple(
        asked.get(family) or _next_free(span, taken, last.get(family))
        for family, span in sorted(ranges.items())
    )


def _next_free(
    span: AddressRange, taken: Collection[IPAddress], after: IPAddress | None
) -> IPAddress:
    make = type(span.network.network_address)
    start = span.first
    if after is not None and after in span:
        start = int(after) + 1
    # At most one more than are taken need looking at, wherever the search starts.
    for step in range(min(span.count, len(taken) + 1)):
        number = span.first + (start - span.first + step) % span.count
        candidate = make(number)
        if candidate not in taken:
            return candidate
    raise PoolExhaustedError(span.network, span.count)
