"""Address families, and parsing of addresses as other programs wrote them.

A family is a value: code that handles IPv4 and IPv6 loops over ``Family``
and asks it for what differs.
"""

import enum
import re
from collections.abc import Mapping
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
from typing import Final, NewType, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPInterface: TypeAlias = IPv4Interface | IPv6Interface
IPNetwork: TypeAlias = IPv4Network | IPv6Network

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
_BY_VERSION: Final[Mapping[int, Family]] = {4: Family.IPV4, 6: Family.IPV6}


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
    mac = text.lower()
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
        or address == IPv4Address("255.255.255.255")
    ):
        msg = f"{text} cannot be the address of a node"
        raise ValueError(msg)
    return address


def host_network(address: IPAddress) -> IPNetwork:
    """Return the network that holds ``address`` alone.

    >>> host_network(IPv4Address("192.0.2.1"))
    IPv4Network('192.0.2.1/32')
    """
    return ip_network(address)
