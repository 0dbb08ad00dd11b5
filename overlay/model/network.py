"""The network config: flannel's keys with flannel's meaning, and ours beside them.

Source: flannel's ``Documentation/configuration.md`` and
``pkg/subnet/config.go`` (defaults and limits of SubnetLen, Min and Max).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Final

from overlay.model.address import FAMILIES, Family, IPAddress, IPNetwork, family_of
from overlay.model.document import parse_json
from overlay.model.egress import DEFAULT_EGRESS, Egress, EgressMode
from overlay.model.errors import ConfigError
from overlay.model.subnet import Subnet

_DEFAULT_LEN: Final = {Family.IPV4: 24, Family.IPV6: 64}
_MAX_LEN: Final = {Family.IPV4: 30, Family.IPV6: 126}
_MAX_CONFIG: Final = 1024 * 1024  # bytes
# ::ffff:0:0/96 is IPv4 in IPv6's clothes (RFC 4291, 2.5.5.2): the two families would overlap.
_V4_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_EGRESS_KEYS: Final = frozenset({"Mode", "NonMasqueradeCIDRs", "RandomFully"})


@dataclass(frozen=True, slots=True)
class SubnetRange:
    """The subnets of one family that nodes may lease: ``first`` to ``last``, both included."""

    network: IPNetwork
    prefixlen: int
    first: IPAddress
    last: IPAddress

    @property
    def count(self) -> int:
        """Return how many subnets there are."""
        return ((int(self.last) - int(self.first)) >> self._shift) + 1

    def subnet(self, index: int) -> IPNetwork:
        """Return the subnet number ``index``, counted from ``first``."""
        address = int(self.first) + (index << self._shift)
        return type(self.network)((address, self.prefixlen))

    def __contains__(self, subnet: IPNetwork) -> bool:
        return (
            family_of(subnet) is family_of(self.network)
            and subnet.prefixlen == self.prefixlen
            and int(self.first) <= int(subnet.network_address) <= int(self.last)
        )

    @property
    def _shift(self) -> int:
        return family_of(self.network).bits - self.prefixlen


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """Which backend the fabric runs, and its options as written, for the backend to parse."""

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """One fabric's network; ``ranges`` has the families that are enabled."""

    ranges: Mapping[Family, SubnetRange]
    backend: BackendConfig
    egress: Egress = DEFAULT_EGRESS

    @property
    def families(self) -> tuple[Family, ...]:
        """Return the enabled families, IPv4 first."""
        return tuple(family for family in FAMILIES if family in self.ranges)

    def network(self, family: Family) -> IPNetwork | None:
        """Return the whole pod network of ``family``."""
        return self.ranges[family].network if family in self.ranges else None

    def covers(self, subnet: Subnet) -> bool:
        """Return whether every network of ``subnet`` lies inside the pod networks."""
        for network in subnet.networks():
            whole = self.network(family_of(network))
            if whole is None or network.prefixlen < whole.prefixlen:
                return False
            if network.network_address not in whole:
                return False
        return True

    def offers(self, subnet: Subnet) -> bool:
        """Return whether an agent could claim ``subnet`` under this config."""
        return {family_of(n) for n in subnet.networks()} == set(self.ranges) and all(
            n in self.ranges[family_of(n)] for n in subnet.networks()
        )


@dataclass(frozen=True, slots=True)
class _FamilyKeys:
    network: str
    length: str
    first: str
    last: str
    parse_network: Callable[[str], IPNetwork]
    parse_address: Callable[[str], IPAddress]


_KEYS: Final = {
    Family.IPV4: _FamilyKeys(
        "Network", "SubnetLen", "SubnetMin", "SubnetMax", IPv4Network, IPv4Address
    ),
    Family.IPV6: _FamilyKeys(
        "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", IPv6Network, IPv6Address
    ),
}
_KNOWN: Final = frozenset(
    # EnableNFTables is flannel's choice of firewall tool; ours is always nftables.
    ["EnableIPv4", "EnableIPv6", "EnableNFTables", "Backend", "Egress"]
    + [k for f in _KEYS.values() for k in (f.network, f.length, f.first, f.last)]
)


def parse_network_config(text: str | bytes) -> NetworkConfig:
    """Return the network that a config describes.

    Backend options are kept as they are: the backend parses its own. Raises
    ConfigError naming key, value and the way out.
    """
    document = _load(text)
    for key in document:
        if key not in _KNOWN:
            raise ConfigError(key, document[key], f"unknown key; known are {_listed(_KNOWN)}")
    _boolean(document, "EnableNFTables", default=True)
    enabled = {
        Family.IPV4: _boolean(document, "EnableIPv4", default=True),
        Family.IPV6: _boolean(document, "EnableIPv6", default=False),
    }
    ranges = {f: _parse_range(document, _KEYS[f], f) for f in FAMILIES if enabled[f]}
    if not ranges:
        raise ConfigError("EnableIPv4", "false", "no family is left; enable IPv4, IPv6 or both")
    return NetworkConfig(ranges, _parse_backend(document), _parse_egress(document))


def format_network_config(config: NetworkConfig) -> str:
    """Return the config with every default written out, as indented JSON."""
    document: dict[str, Any] = {}
    for family in FAMILIES:
        keys = _KEYS[family]
        document[f"EnableIPv{family.value}"] = family in config.ranges
        if family in config.ranges:
            span = config.ranges[family]
            document[keys.network] = str(span.network)
            document[keys.length] = span.prefixlen
            document[keys.first] = str(span.first)
            document[keys.last] = str(span.last)
    document["Backend"] = {"Type": config.backend.type, **config.backend.options}
    egress = config.egress
    document["Egress"] = {
        "Mode": egress.mode.value,
        "NonMasqueradeCIDRs": [str(n) for n in egress.non_masquerade],
        "RandomFully": egress.random_fully,
    }
    return json.dumps(document, indent=2)


def integer(options: Mapping[str, Any], key: str, low: int, high: int, default: int) -> int:
    """Return an integer option of a backend between ``low`` and ``high``, both included.

    Raises ConfigError naming ``Backend.KEY``.
    """
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"Backend.{key}", value, "write a whole number, without quotes")
    if not low <= value <= high:
        raise ConfigError(f"Backend.{key}", value, f"out of range; use {low} to {high}")
    return value


def boolean(options: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Return a boolean option of a backend. Raises ConfigError naming ``Backend.KEY``."""
    return _boolean(options, key, default=default, shown=f"Backend.{key}")


def refuse_unknown(options: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raise ConfigError for the first option of a backend that is not in ``known``."""
    for key, value in options.items():
        if key not in known:
            raise ConfigError(f"Backend.{key}", value, f"unknown key; known are {_listed(known)}")


def _load(text: str | bytes) -> dict[str, Any]:
    if len(text) > _MAX_CONFIG:
        raise ConfigError("(whole)", f"{len(text)} bytes", f"at most {_MAX_CONFIG} are read")
    try:
        document = parse_json(text)
    except ValueError as exc:
        shown = text if isinstance(text, str) else text.decode(errors="replace")
        raise ConfigError("(whole)", shown[:60], f"not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise ConfigError("(whole)", document, "write a JSON object")
    return document


def _parse_range(document: Mapping[str, Any], keys: _FamilyKeys, family: Family) -> SubnetRange:
    network = _parse_cidr(keys.network, document.get(keys.network), family)
    prefixlen = _subnet_length(document, keys, network, family)
    step = 1 << (family.bits - prefixlen)
    # The first subnet is left out: its own address is the network's, which
    # some programs take for a broadcast address. flannel does the same.
    first = int(network.network_address) + step
    last = int(network.broadcast_address) + 1 - step
    bounds = {}
    for key, default in ((keys.first, first), (keys.last, last)):
        value = document.get(key)
        bounds[key] = default if value is None else _bound(key, value, keys, network, step)
    if bounds[keys.first] > bounds[keys.last]:
        raise ConfigError(keys.first, document.get(keys.first), f"lies behind {keys.last}")
    address = type(network.network_address)
    return SubnetRange(network, prefixlen, address(bounds[keys.first]), address(bounds[keys.last]))


def _subnet_length(
    document: Mapping[str, Any], keys: _FamilyKeys, network: IPNetwork, family: Family
) -> int:
    value = document.get(keys.length, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(keys.length, value, "write a whole number, without quotes")
    room = f"{keys.network} {network}"
    if value == 0:  # absent and 0 mean the default, as in flannel
        length = max(_DEFAULT_LEN[family], network.prefixlen + 2)
        if length > _MAX_LEN[family]:
            raise ConfigError(
                keys.network, str(network), f"too small; use /{_MAX_LEN[family] - 2} or wider"
            )
        return length
    if not 1 <= value <= _MAX_LEN[family]:
        raise ConfigError(keys.length, value, f"out of range; use at most {_MAX_LEN[family]}")
    if value < network.prefixlen + 2:
        raise ConfigError(
            keys.length,
            value,
            f"{room} has no room for four /{value}; widen {keys.network} or raise {keys.length} "
            f"to {network.prefixlen + 2} or more",
        )
    return value


def _bound(key: str, value: Any, keys: _FamilyKeys, network: IPNetwork, step: int) -> int:
    try:
        if not isinstance(value, str) or "%" in value:
            msg = "write an address in quotes, without an interface"
            raise ValueError(msg)  # noqa: TRY301 - one message for both ways of being wrong
        address = keys.parse_address(value)
    except ValueError as exc:
        raise ConfigError(key, value, str(exc)) from exc
    if address not in network:
        raise ConfigError(key, value, f"outside {keys.network} {network}")
    if int(address) % step:
        low = address - int(address) % step
        raise ConfigError(key, value, f"not the first address of a subnet; use {low}")
    return int(address)


def _parse_cidr(key: str, value: Any, family: Family | None) -> IPNetwork:
    if value is None:
        raise ConfigError(key, value, f"missing; write {key} as a CIDR such as 10.244.0.0/16")
    if not isinstance(value, str):
        raise ConfigError(key, value, "write a CIDR in quotes")
    if "%" in value:
        raise ConfigError(
            key, value, "names an interface of one host; leave out what follows the %"
        )
    try:
        network = ip_network(value)
    except ValueError as exc:
        try:
            hint = f"; use {ip_network(value, strict=False)}"
        except ValueError:
            hint = ""
        raise ConfigError(key, value, f"{exc}{hint}") from exc
    if family is not None and family_of(network) is not family:
        raise ConfigError(key, value, f"not an {family} network")
    if family is not None and _cannot_hold_pods(network):
        raise ConfigError(key, value, "cannot hold pods; use a private range")
    return network


def _cannot_hold_pods(network: IPNetwork) -> bool:
    return (
        network.is_loopback
        or network.is_multicast
        or network.prefixlen == 0
        or (isinstance(network, IPv6Network) and network.overlaps(_V4_MAPPED))
    )


def _parse_backend(document: Mapping[str, Any]) -> BackendConfig:
    backend = document.get("Backend", {"Type": "vxlan"})
    if not isinstance(backend, dict):
        raise ConfigError("Backend", backend, 'write an object such as {"Type": "vxlan"}')
    options = dict(backend)
    kind = options.pop("Type", None)
    if not isinstance(kind, str) or not kind:
        raise ConfigError("Backend.Type", kind, 'write a backend\'s name, such as "vxlan"')
    return BackendConfig(kind, options)


def _parse_egress(document: Mapping[str, Any]) -> Egress:
    egress = document.get("Egress", {})
    if not isinstance(egress, dict):
        raise ConfigError("Egress", egress, 'write an object such as {"Mode": "island"}')
    for key, value in egress.items():
        if key not in _EGRESS_KEYS:
            raise ConfigError(
                f"Egress.{key}", value, f"unknown key; known are {_listed(_EGRESS_KEYS)}"
            )
    mode = egress.get("Mode", DEFAULT_EGRESS.mode.value)
    if mode not in [m.value for m in EgressMode]:
        raise ConfigError("Egress.Mode", mode, f"use {_listed(m.value for m in EgressMode)}")
    exceptions = egress.get("NonMasqueradeCIDRs", [])
    if not isinstance(exceptions, list):
        raise ConfigError("Egress.NonMasqueradeCIDRs", exceptions, "write a list of CIDRs")
    return Egress(
        mode=EgressMode(mode),
        non_masquerade=tuple(
            _parse_cidr("Egress.NonMasqueradeCIDRs", item, None) for item in exceptions
        ),
        random_fully=_boolean(egress, "RandomFully", default=True, shown="Egress.RandomFully"),
    )


def _boolean(
    document: Mapping[str, Any], key: str, *, default: bool, shown: str | None = None
) -> bool:
    value = document.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(shown or key, value, "write true or false, without quotes")
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
