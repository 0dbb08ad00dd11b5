"""Which addresses an attachment gets: one after the other, each again as late as possible."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from overlay.ipam.spans import AddressRange, Pieces, Span, offered
from overlay.model.address import FAMILIES, Family, IPAddress, IPNetwork, family_of
from overlay.model.errors import OverlayError
from overlay.model.subnet import Subnet

# Addresses that wait for their turn; an IPv6 subnet has fresh ones for ever.
_MOST_RESTING: Final = 1 << 17
_MAKE: Final[dict[Family, type[IPAddress]]] = {
    Family.IPV4: IPv4Address,
    Family.IPV6: IPv6Address,
}


class PoolExhaustedError(OverlayError):
    """Every address of a family is in use; ``count`` is how many there are to give."""

    def __init__(self, network: IPNetwork, count: int) -> None:
        self.count = count
        total = AddressRange(network).count
        beside = "" if count == total else f" that may be given here (of {total})"
        super().__init__(
            f"subnet {network}: all {count} addresses{beside} are in use; `overlayctl ipam list` "
            "shows by whom, and a smaller SubnetLen gives each node more"
        )


class AddressTakenError(OverlayError):
    """An address that was asked for is in use."""


class AddressOutsideError(OverlayError):
    """An address that was asked for is not one that this node may give."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What an attachment asks for.

    ``addresses`` are to be given if they are free, also reserved ones.
    ``spans`` are the only ones to choose from, in families that have any.
    """

    addresses: tuple[IPAddress, ...] = ()
    spans: tuple[Span, ...] = ()


ANYTHING: Final = Demand()


@dataclass(slots=True)
class _Shelf:
    """One family's addresses, as numbers."""

    taken: set[int] = field(default_factory=set)
    resting: OrderedDict[int, None] = field(default_factory=OrderedDict)  # longest first
    last: int | None = None  # given by choice
    used_up: Pieces | None = None  # where no fresh one is left


class Pool:
    """The addresses of this node: in use, resting since they were given back, or fresh.

    Not for several threads at once. ``reserved`` are given to those alone who
    ask for them by name; ``last`` are those that were chosen last before now.
    """

    def __init__(self, reserved: Iterable[Span] = (), last: Iterable[IPAddress] = ()) -> None:
        self._reserved = tuple(reserved)
        self._shelves = {family: _Shelf() for family in FAMILIES}
        for address in last:
            self._shelves[family_of(address)].last = int(address)

    @property
    def last(self) -> tuple[IPAddress, ...]:
        """Return the address of each family that was chosen last."""
        return tuple(
            _MAKE[family](shelf.last)
            for family, shelf in self._shelves.items()
            if shelf.last is not None
        )

    def allocate(self, subnet: Subnet, demand: Demand = ANYTHING) -> tuple[IPAddress, ...]:
        """Take one free address for each family of ``subnet``, and return them, IPv4 first.

        Where none is asked for, the next fresh one behind the last is chosen,
        from the start again after the end; without a fresh one that which has
        rested longest. The number of addresses in use does not matter to the
        time it takes.

        Raises PoolExhaustedError, AddressTakenError, AddressOutsideError;
        nothing is taken then.
        """
        ranges = {family_of(network): AddressRange(network) for network in subnet.networks()}
        asked = self._asked(subnet, ranges, demand)
        chosen = {
            family: self._choose(span, demand.spans)
            for family, span in sorted(ranges.items())
            if family not in asked
        }
        for family, address in chosen.items():
            self._shelves[family].last = int(address)
        found = tuple(address for _, address in sorted((asked | chosen).items()))
        self.hold(found)
        return found

    def hold(self, addresses: Iterable[IPAddress]) -> None:
        """Note addresses as in use."""
        for address in addresses:
            shelf, number = self._shelves[family_of(address)], int(address)
            shelf.taken.add(number)
            shelf.resting.pop(number, None)

    def release(self, addresses: Iterable[IPAddress]) -> None:
        """Take addresses back; each rests behind all that rest already."""
        for address in addresses:
            shelf, number = self._shelves[family_of(address)], int(address)
            if number not in shelf.taken:
                continue
            shelf.taken.remove(number)
            shelf.resting[number] = None
            if len(shelf.resting) > _MOST_RESTING:
                shelf.resting.popitem(last=False)
                shelf.used_up = None

    def usage(self, network: IPNetwork) -> tuple[int, int]:
        """Return how many addresses of ``network`` are in use, and of how many.

        Reserved ones count in neither.
        """
        pieces = offered(AddressRange(network), (), self._reserved)
        taken = self._shelves[family_of(network)].taken
        return sum(number in pieces for number in taken), pieces.count

    def _asked(
        self, subnet: Subnet, ranges: dict[Family, AddressRange], demand: Demand
    ) -> dict[Family, IPAddress]:
        asked: dict[Family, IPAddress] = {}
        for address in demand.addresses:
            family = family_of(address)
            if family not in ranges or address not in ranges[family]:
                msg = f"address {address} is not one of this node's: it gives those of {subnet}"
                raise AddressOutsideError(msg)
            spans = [span for span in demand.spans if span.family is family]
            if spans and not any(address in span for span in spans):
                listed = ", ".join(map(str, spans))
                msg = f"address {address} is not in the ranges that were asked for: {listed}"
                raise AddressOutsideError(msg)
            if int(address) in self._shelves[family].taken:
                msg = f"address {address} is in use"
                raise AddressTakenError(msg)
            if family in asked:
                msg = f"addresses {asked[family]} and {address}: one for each family"
                raise AddressOutsideError(msg)
            asked[family] = address
        return asked

    def _choose(self, span: AddressRange, spans: Iterable[Span]) -> IPAddress:
        family = family_of(span.network)
        shelf = self._shelves[family]
        pieces = offered(span, spans, self._reserved)
        number = _fresh(shelf, pieces)
        if number is None:
            shelf.used_up = pieces
            number = next((n for n in shelf.resting if n in pieces), None)
        if number is None:
            raise PoolExhaustedError(span.network, pieces.count)
        return _MAKE[family](number)


def _fresh(shelf: _Shelf, pieces: Pieces) -> int | None:
    """Return the next number that is neither in use nor resting, behind the last one given."""
    if shelf.used_up == pieces:
        return None
    count = pieces.count
    start = pieces.place_behind(shelf.last) if shelf.last is not None else 0
    # One more than are not fresh need looking at, wherever the search starts.
    for step in range(min(count, len(shelf.taken) + len(shelf.resting) + 1)):
        number = pieces.at((start + step) % count)
        if number not in shelf.taken and number not in shelf.resting:
            return number
    return None
