"""A lease's subnet: one network per family, and its spelling as an etcd key.

The spelling is flannel's (``pkg/subnet/subnet.go``, ``MakeSubnetKey``):
``10.244.3.0-24``, dual-stack ``10.244.3.0-24&fd00:1:2:3::-64``, IPv6 alone
``0.0.0.0-0&fd00:1:2:3::-64``.
"""

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from overlay.model.address import (
    Family,
    IPAddress,
    IPNetwork,
    family_of,
    network_at,
    overlap,
)
from overlay.model.errors import LeaseFormatError, cut, shown

_KEY: Final = re.compile(
    r"(?P<v4>\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})-(?P<v4len>\d{1,2})"
    r"(?:&(?P<v6>[0-9a-f:.]{2,45})-(?P<v6len>\d{1,3}))?\Z"
)
_NO_V4: Final = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class Subnet:
    """What one lease covers; at least one family is set.

    ``key`` is the last part of the lease's etcd key, made once: every pass
    over the leases asks for it.

    >>> Subnet(IPv4Network("10.244.3.0/24"), IPv6Network("fd00::/64")).key
    '10.244.3.0-24&fd00::-64'
    """

    v4: IPv4Network | None = None
    v6: IPv6Network | None = None
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.v4 is None and self.v6 is None:
            msg = "a subnet needs at least one network"
            raise ValueError(msg)
        object.__setattr__(self, "key", _key(self.v4 or _NO_V4, self.v6))

    def network(self, family: Family) -> IPNetwork | None:
        """Return the network of ``family``, or None where the lease has none."""
        return self.v4 if family is Family.IPV4 else self.v6

    def networks(self) -> tuple[IPNetwork, ...]:
        """Return the networks there are, IPv4 first."""
        if self.v6 is None:
            return () if self.v4 is None else (self.v4,)
        return (self.v6,) if self.v4 is None else (self.v4, self.v6)

    def overlaps(self, other: "Subnet") -> bool:
        """Return whether the two share an address in any family."""
        return bool(
            (self.v4 and other.v4 and overlap(self.v4, other.v4))
            or (self.v6 and other.v6 and overlap(self.v6, other.v6))
        )

    def __contains__(self, address: IPAddress) -> bool:
        network = self.network(family_of(address))
        return network is not None and address in network

    def __str__(self) -> str:
        return " ".join(str(network) for network in self.networks())


def _key(v4: IPv4Network, v6: IPv6Network | None) -> str:
    text = f"{v4.network_address}-{v4.prefixlen}"
    if v6 is not None:
        text += f"&{v6.network_address}-{v6.prefixlen}"
    return text


def subnet_of(*networks: IPNetwork | None) -> Subnet:
    """Return the subnet made of ``networks``, at most one for each family."""
    v4 = next((n for n in networks if isinstance(n, IPv4Network)), None)
    v6 = next((n for n in networks if isinstance(n, IPv6Network)), None)
    return Subnet(v4, v6)


def parse_subnet_key(text: str) -> Subnet:
    """Return the subnet that a lease key names.

    Raises LeaseFormatError for anything else, host bits included: such a key
    cannot have been written by an agent and names no routable subnet.
    """
    match = _KEY.match(text)
    if match is None:
        msg = f"lease key {shown(text)} is not of the form 10.244.3.0-24[&fd00:1:2:3::-64]"
        raise LeaseFormatError(msg)
    try:
        v4 = network_at(IPv4Address(match["v4"]), int(match["v4len"]))
        v6 = network_at(IPv6Address(match["v6"]), int(match["v6len"])) if match["v6"] else None
    except ValueError as exc:
        msg = f"lease key {shown(text)}: {cut(str(exc))}"
        raise LeaseFormatError(msg) from exc
    subnet = Subnet(None, v6) if v6 is not None and v4 == _NO_V4 else Subnet(v4, v6)
    if any(network.prefixlen == 0 for network in subnet.networks()):
        msg = f"lease key {shown(text)} covers every address; a lease is part of the network"
        raise LeaseFormatError(msg)
    return subnet


def parse_subnet(text: str) -> Subnet:
    """Return a subnet as people write it: ``10.244.3.0/24``, ``V4,V6`` or a lease key.

    Raises LeaseFormatError with the text at fault.
    """
    if "-" in text:
        return parse_subnet_key(text)
    if "%" in text:
        msg = f"subnet {shown(text)} names an interface; leave out what follows the %"
        raise LeaseFormatError(msg)
    networks: list[IPNetwork] = []
    for part in re.split(r"[,&\s]+", text.strip()):
        try:
            networks.append(IPv6Network(part) if ":" in part else IPv4Network(part))
        except ValueError as exc:
            way_out = "write 10.244.3.0/24 or 10.244.3.0/24,fd00:1::/64"
            msg = f"subnet {shown(text)}: {cut(str(exc))}; {way_out}"
            raise LeaseFormatError(msg) from exc
    if len({family_of(n) for n in networks}) != len(networks):
        msg = f"subnet {shown(text)} has two networks of one family"
        raise LeaseFormatError(msg)
    return subnet_of(*networks)
