"""Address families, and parsing of addresses as other programs wrote them.

A family is a value: code that handles IPv4 and IPv6 loops over ``Family``
and asks it for what differs.
"""

import enum
import re
from collections.abc import Iterator, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, Final, NewType, TypeAlias, TypeVar, overload

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
IPNetwork: TypeAlias = IPv4Network | IPv6Network

V_co = TypeVar("V_co", covariant=True)

MacAddress = NewType("MacAddress", str)  # lower case, colons

_MAC: Final = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\Z")


class Family(enum.Enum):
    """An address family; the value is the IP version."""

    IPV4 = 4
    IPV6 = 6

    @property
    def bits(self) -> int:
        """Return the length of an address in bits."""
        return 32 if self is Family.IPV4 else 128

    @property
    def encapsulation_overhead(self) -> int:
        """Return what VXLAN over this family adds to an inner IP packet, in bytes.

        Outer IP 20 or 40 + UDP 8 + VXLAN 8 + inner Ethernet 14 (RFC 7348,
        section 5).

        >>> Family.IPV4.encapsulation_overhead, Family.IPV6.encapsulation_overhead
        (50, 70)
        """
        return (20 if self is Family.IPV4 else 40) + 8 + 8 + 14

    # Members are singletons. Enum's own hash, in Python, of the name cost a
    # tenth of planning 5,000 peers.
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return f"IPv{self.value}"

    def __lt__(self, other: "Family") -> bool:
        return bool(self.value < other.value)


FAMILIES: Final = (Family.IPV4, Family.IPV6)
_BROADCAST: Final = IPv4Address("255.255.255.255")
_BITS: Final = {4: 32, 6: 128}
_POINT_TO_POINT: Final = 2  # bits: networks with fewer have no broadcast address (RFC 3021)
_MASKS: Final[dict[tuple[int, int], IPAddress]] = {}
_BY_VERSION: Final[Mapping[int, Family]] = {4: Family.IPV4, 6: Family.IPV6}


class ByFamily(Mapping[Family, V_co]):
    """A mapping of families that never changes: 48 bytes, where a dictionary has 224."""

    __slots__ = ("_v4", "_v6")

    def __init__(self, v4: V_co | None = None, v6: V_co | None = None) -> None:
        self._v4, self._v6 = v4, v6

    @classmethod
    def of(cls, found: Mapping[Family, V_co]) -> "ByFamily[V_co]":
        """Return what ``found`` holds; no value may be None."""
        return cls(found.get(Family.IPV4), found.get(Family.IPV6))

    def __getitem__(self, family: Family) -> V_co:
        value = self._v4 if family is Family.IPV4 else self._v6
        if value is None:
            raise KeyError(family)
        return value

    def __contains__(self, family: object) -> bool:
        return family in FAMILIES and self.get(family) is not None

    def get(self, family: Family, default: Any = None) -> Any:
        """Return the value of ``family``, or ``default``."""
        value = self._v4 if family is Family.IPV4 else self._v6
        return default if value is None else value

    def __iter__(self) -> Iterator[Family]:
        return (f for f in FAMILIES if self.get(f) is not None)

    def __len__(self) -> int:
        return (self._v4 is not None) + (self._v6 is not None)

    def __repr__(self) -> str:
        return repr(dict(self))


def family_of(value: IPAddress | IPNetwork | IPInterface) -> Family:
    """Return the family of an address, a network or an interface address."""
    return _BY_VERSION[value.version]


def parse_mac(text: str) -> MacAddress:
    """Return a unicast MAC address in the kernel's spelling.

    Raises ValueError for anything that cannot be one station's address: in a
    forwarding database an all-zero MAC means "flood", a multicast one a group.

    >>> parse_mac("02:AB:00:00:00:01")
    '02:ab:00:00:00:01'
    """
    mac = text if text.islower() else text.lower()
    if not _MAC.match(mac):
        msg = f"{text!r} is not a MAC address"
        raise ValueError(msg)
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        msg = f"{text!r} is not the MAC address of one station"
        raise ValueError(msg)
    return MacAddress(mac)


def parse_node_address(text: str, family: Family | None = None) -> IPAddress:
    """Return an address that a node can be reached at.

    Raises ValueError for text that is no address, for the other family, and
    for loopback, multicast, broadcast, scoped and unspecified addresses.
    """
    address = ip_address(text)
    if "%" in text:
        msg = f"{text} names an interface of one host; leave out what follows the %"
        raise ValueError(msg)
    if family is not None and family_of(address) is not family:
        msg = f"{text} is not an {family} address"
        raise ValueError(msg)
    if (
        address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or address == _BROADCAST
    ):
        msg = f"{text} cannot be the address of a node"
        raise ValueError(msg)
    return address


def host_network(address: IPAddress) -> IPNetwork:
    """Return the network that holds ``address`` alone; its ``hosts()`` is not to be asked.

    >>> host_network(IPv4Address("192.0.2.1"))
    IPv4Network('192.0.2.1/32')
    """
    return _assembled(address, _BITS[address.version])


@overload
def network_at(address: IPv4Address, length: int) -> IPv4Network: ...
@overload
def network_at(address: IPv6Address, length: int) -> IPv6Network: ...
def network_at(address: IPAddress, length: int) -> IPNetwork:
    """Return the network of ``length`` bits that begins at ``address``.

    Raises ValueError for host bits, and a length that no address has.

    >>> network_at(IPv4Address("10.244.3.0"), 24)
    IPv4Network('10.244.3.0/24')
    """
    rest = _BITS[address.version] - length
    if rest < _POINT_TO_POINT or length < 1 or int(address) & ((1 << rest) - 1):
        return ip_network(f"{address}/{length}")
    return _assembled(address, length)


def last_address(network: IPNetwork) -> int:
    """Return the last address of a network as a number.

    ``broadcast_address`` of the standard library is kept in the network, with
    what it is made of: 200 bytes.

    >>> IPv4Address(last_address(IPv4Network("10.244.3.0/24")))
    IPv4Address('10.244.3.255')
    """
    return int(network.network_address) | (1 << _BITS[network.version] - network.prefixlen) - 1


def overlap(one: IPNetwork, other: IPNetwork) -> bool:
    """Return whether two networks share an address.

    ``overlaps`` of the standard library keeps its intermediate results in
    each network, 400 bytes.
    """
    if one.version != other.version:
        return False
    differing = int(one.network_address) ^ int(other.network_address)
    return not differing >> _BITS[one.version] - min(one.prefixlen, other.prefixlen)


def _assembled(address: IPAddress, length: int) -> IPNetwork:
    """Return a network of ``address`` itself: a tenth of the time, 300 bytes less.

    The standard library copies the address, and gives a network of one address
    a function of its own.
    """
    kind: type[IPNetwork] = IPv4Network if address.version == 4 else IPv6Network
    mask = _MASKS.get((address.version, length))
    if mask is None:
        mask = _MASKS[address.version, length] = kind((0, length)).netmask
    network = kind.__new__(kind)
    network.network_address = address
    network.netmask = mask
    network._prefixlen = length  # type: ignore[union-attr]  # noqa: SLF001 - compared with the standard library's in tests
    return network
