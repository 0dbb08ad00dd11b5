"""What a network configuration asks for, beyond the addresses by name: mode, MTU, ranges."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any, Final

from overlay.agent.cni_request import (
    BAD_CONFIG,
    LATEST,
    CniError,
    CniRequest,
    ignoring_case,
    wanted_addresses,
)
from overlay.ipam.pool import Demand
from overlay.ipam.spans import Span
from overlay.model.address import IPAddress, IPNetwork
from overlay.model.attachment import MODES, PTP
from overlay.model.errors import shown
from overlay.model.netpol import Labels
from overlay.model.subnet import Subnet
from overlay.policy.network.fields import Field, PolicyFormatError
from overlay.policy.network.selectors import parse_labels

_ROUTE_NUMBERS: Final = ("mtu", "advmss", "priority", "table", "scope")
_RANGE_KEYS: Final = ("subnet", "rangeStart", "rangeEnd", "gateway")


def wanted_mode(request: CniRequest) -> str:
    """Return how the pod is to be wired, one of ``MODES``. Raises CniError."""
    mode = request.config.get("mode")
    if mode is None:
        return PTP
    if not isinstance(mode, str) or mode not in MODES:
        listed = ", ".join(f'"{each}"' for each in MODES)
        raise CniError(BAD_CONFIG, f'"mode" {shown(mode)} is none of {listed}')
    return mode


def wanted_mtu(request: CniRequest, mtu: int) -> int:
    """Return the MTU in bytes, at most ``mtu``. Raises CniError."""
    wanted: Any = request.config.get("mtu", 0)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted <= 65535:
        raise CniError(BAD_CONFIG, f'"mtu" {shown(wanted)} is not a size in bytes')
    if wanted > mtu:
        raise CniError(BAD_CONFIG, f'"mtu" {wanted}: the fabric carries {mtu} bytes; lower it')
    return wanted or mtu


def wanted_routes(request: CniRequest) -> list[dict[str, Any]] | None:
    """Return ``ipam.routes`` for the result of an IPAM ADD, None where none are told.

    What a route has beside "dst" and "gw" came with 1.1.0. Raises CniError.
    """
    ipam = request.config.get("ipam")
    listed = ipam.get("routes") if isinstance(ipam, dict) else None
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise CniError(BAD_CONFIG, f'"ipam.routes" {shown(listed)} is not a list of routes')
    return [
        _route(item, f"ipam.routes[{place}]", request.version) for place, item in enumerate(listed)
    ]


def _route(item: Any, where: str, version: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise CniError(BAD_CONFIG, f'"{where}" {shown(item)} is not a route')
    try:
        ip_network(_text(item.get("dst")), strict=False)
    except ValueError as exc:
        raise CniError(BAD_CONFIG, f'"{where}.dst": {exc}') from exc
    if item.get("gw") is not None:
        try:
            ip_address(_text(item["gw"]))
        except ValueError as exc:
            raise CniError(BAD_CONFIG, f'"{where}.gw": {exc}') from exc
    for key in _ROUTE_NUMBERS:
        value = item.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise CniError(BAD_CONFIG, f'"{where}.{key}" {shown(value)} is not a number')
    known = ("dst", "gw", *(_ROUTE_NUMBERS if version == LATEST else ()))
    return {key: item[key] for key in known if item.get(key) is not None}


def _text(value: Any) -> str:
    """Return an address as it stands in JSON. Raises ValueError for anything else."""
    if not isinstance(value, str) or "%" in value:
        msg = f"{shown(value)} is not an address"
        raise ValueError(msg)
    return value


def wanted_labels(request: CniRequest) -> Labels:
    """Return the labels that policies know the pod by. Raises CniError.

    ``labels`` of the network configuration, ``args.cni.labels`` (a list of
    keys and values, CNI's CONVENTIONS.md) and LABELS=a=b,c=d of CNI_ARGS; what
    comes later counts.
    """
    found: dict[str, Any] = {}
    configured = request.config.get("labels")
    if configured is not None:
        if not isinstance(configured, dict):
            raise CniError(BAD_CONFIG, f'"labels" {shown(configured)} is not an object')
        found.update(configured)
    args = request.config.get("args")
    cni = args.get("cni") if isinstance(args, dict) else None
    listed = cni.get("labels") if isinstance(cni, dict) else None
    for item in listed if isinstance(listed, list) else ():
        if not isinstance(item, dict) or not isinstance(item.get("key"), str):
            raise CniError(BAD_CONFIG, f'"args.cni.labels": {shown(item)} has no key')
        found[item["key"]] = item.get("value")
    words = (word.partition("=") for word in request.arguments.get("LABELS", "").split(","))
    found.update({key: value for key, equals, value in words if equals})
    if not found:
        return found
    try:
        return parse_labels(Field(found, "labels", "network configuration"))
    except PolicyFormatError as exc:
        raise CniError(BAD_CONFIG, str(exc)) from exc


def demand(request: CniRequest, subnet: Subnet) -> Demand:
    """Return the addresses and ranges that the runtime asks for. Raises CniError."""
    return Demand(wanted_addresses(request), tuple(_wanted_spans(request, subnet)))


def _wanted_spans(request: CniRequest, subnet: Subnet) -> Iterator[Span]:
    """Yield the spans of ``runtimeConfig.ipRanges``, each within this node's subnet.

    A list of sets, one for each family, of ranges (CNI's CONVENTIONS.md). A
    range without a start or end goes to that end of its "subnet", as far as
    this node's subnet goes. "gateway" is kept out, and is not routed by.
    """
    runtime = request.config.get("runtimeConfig")
    listed: Any = ignoring_case(runtime, "ipranges") if isinstance(runtime, dict) else None
    if listed is None:
        return
    if not isinstance(listed, list):
        raise CniError(BAD_CONFIG, f'"ipRanges" {shown(listed)} is not a list of lists of ranges')
    seen: dict[int, int] = {}
    for i, ranges in enumerate(listed):
        if not isinstance(ranges, list) or not ranges:
            raise CniError(BAD_CONFIG, f'"ipRanges[{i}]" {shown(ranges)} is not a list of ranges')
        for j, item in enumerate(ranges):
            where = f"ipRanges[{i}][{j}]"
            for span in _spans(item, where, subnet):
                version = span.first.version
                if seen.setdefault(version, i) != i:
                    raise CniError(
                        BAD_CONFIG,
                        f'"{where}": "ipRanges[{seen[version]}]" has IPv{version} already',
                        "one set for each family",
                    )
                yield span


def _spans(item: Any, where: str, subnet: Subnet) -> Iterator[Span]:
    if not isinstance(item, dict):
        raise CniError(BAD_CONFIG, f'"{where}" {shown(item)} is not a range')
    for key in _RANGE_KEYS:
        value = item.get(key)
        if value is not None and (not isinstance(value, str) or not value or "%" in value):
            raise CniError(BAD_CONFIG, f'"{where}.{key}" {shown(value)} is not an address')
    network = _network(item, where)
    own = next((n for n in subnet.networks() if n.version == network.version), None)
    if own is None or not own.overlaps(network):
        msg = f'"{where}.subnet" {network} lies outside this node\'s subnet {subnet}'
        raise CniError(BAD_CONFIG, msg)
    first = _end(item, where, "rangeStart", network, own)
    last = _end(item, where, "rangeEnd", network, own)
    low = first or max(network[0], own[0], key=int)
    high = last or min(network[-1], own[-1], key=int)
    if int(low) > int(high):
        raise CniError(BAD_CONFIG, f'"{where}.rangeEnd" {high} is before "rangeStart" {low}')
    yield from _without(Span(low, high), _address(item, where, "gateway"), where)


def _network(item: dict[str, Any], where: str) -> IPNetwork:
    text = item.get("subnet")
    if text is None:
        raise CniError(BAD_CONFIG, f'"{where}.subnet" is missing')
    try:
        return ip_network(text, strict=False)
    except ValueError as exc:
        raise CniError(BAD_CONFIG, f'"{where}.subnet": {exc}') from exc


def _end(
    item: dict[str, Any], where: str, key: str, network: IPNetwork, own: IPNetwork
) -> IPAddress | None:
    address = _address(item, where, key)
    if address is not None:
        if address not in network:
            raise CniError(BAD_CONFIG, f'"{where}.{key}" {address} is not in "subnet" {network}')
        if address not in own:
            msg = f'"{where}.{key}" {address} lies outside this node\'s subnet {own}'
            raise CniError(BAD_CONFIG, msg)
    return address


def _address(item: dict[str, Any], where: str, key: str) -> IPAddress | None:
    text = item.get(key)
    if text is None:
        return None
    try:
        return ip_address(text)
    except ValueError as exc:
        raise CniError(BAD_CONFIG, f'"{where}.{key}": {exc}') from exc


def _without(span: Span, address: IPAddress | None, where: str) -> Iterator[Span]:
    if address is None or address not in span:
        yield span
        return
    make, number = type(address), int(address)
    if span.first == span.last:
        raise CniError(BAD_CONFIG, f'"{where}" has no address beside its "gateway" {address}')
    if address != span.first:
        yield Span(span.first, make(number - 1))
    if address != span.last:
        yield Span(make(number + 1), span.last)
