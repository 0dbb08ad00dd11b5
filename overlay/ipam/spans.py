"""Pieces of the address space: what a subnet offers, less what is reserved."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from overlay.model.address import Family, IPAddress, IPNetwork, family_of

# The network's own address is the VTEP's, the next one is the gateway that
# flannel's subnet.env names; the last one of IPv4 is the broadcast address.
_RESERVED_FIRST: Final = 2


@dataclass(frozen=True, slots=True)
class Span:
    """Addresses of one family, ``first`` to ``last``, both included."""

    first: IPAddress
    last: IPAddress

    @property
    def family(self) -> Family:
        """Return the family of both ends."""
        return family_of(self.first)

    def __contains__(self, address: IPAddress) -> bool:
        is_same = address.version == self.first.version
        return is_same and int(self.first) <= int(address) <= int(self.last)

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def parse_span(text: str) -> Span:
    """Return ``10.1.0.5``, ``10.1.0.16/28`` or ``10.1.0.20-10.1.0.29`` as a span.

    Raises ValueError, naming what is wrong.
    """
    first, dash, last = text.strip().partition("-")
    if not dash:
        network = ip_network(first, strict=False)
        return Span(network[0], network[-1])
    span = Span(ip_address(first.strip()), ip_address(last.strip()))
    if span.first.version != span.last.version or int(span.first) > int(span.last):
        msg = f"{text!r}: the second address does not come after the first"
        raise ValueError(msg)
    return span


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


@dataclass(frozen=True, slots=True)
class Pieces:
    """Numbers to choose from: pieces in order, apart from one another, both ends included."""

    ends: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Return how many numbers there are."""
        return sum(last - first + 1 for first, last in self.ends)

    def at(self, place: int) -> int:
        """Return the number at a place, counted from 0 over all pieces."""
        for first, last in self.ends:
            if place <= last - first:
                return first + place
            place -= last - first + 1
        raise IndexError(place)

    def place_behind(self, number: int) -> int:
        """Return the place of the first number after ``number``; 0 when that was the last one."""
        place = 0
        for first, last in self.ends:
            if number < last:
                return place + max(0, number + 1 - first)
            place += last - first + 1
        return 0

    def __contains__(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.ends)


def offered(
    whole: AddressRange, within: Iterable[Span] = (), reserved: Iterable[Span] = ()
) -> Pieces:
    """Return what may be chosen from: ``within`` where there is any, less what is reserved."""
    family = family_of(whole.network)
    wanted = [(int(s.first), int(s.last)) for s in within if s.family is family]
    ends = _merged(
        (max(whole.first, first), min(whole.last, last))
        for first, last in wanted or [(whole.first, whole.last)]
    )
    for span in reserved:
        if span.family is family:
            low, high = int(span.first), int(span.last)
            parts = [((a, min(b, low - 1)), (max(a, high + 1), b)) for a, b in ends]
            ends = [(a, b) for pair in parts for a, b in pair if a <= b]
    return Pieces(tuple(ends))


def _merged(ends: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ends):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        elif first <= last:
            found.append((first, last))
    return found
