"""What the plugin prints: results and errors in the form of each CNI version."""

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from overlay.agent.cni_config import wanted_routes
from overlay.agent.cni_request import (
    BAD_CONFIG,
    VERSIONS,
    CniError,
    CniRequest,
    previous_result,
)
from overlay.agent.cni_wire import LONGEST_ANSWER
from overlay.kernel.pod_gateway import GATEWAY
from overlay.kernel.pods import link_mac
from overlay.model.address import FAMILIES, Family, IPAddress, family_of
from overlay.model.attachment import BRIDGE, Attachment
from overlay.model.node import POD_BRIDGE, POD_BRIDGE_MAC
from overlay.model.subnet import Subnet

_OWN_GATEWAY: Final = {
    family: str(address) for family, address in GATEWAY.items()
}  # of a routed pod


_LONGEST_TEXT: Final = 4096  # characters of an error's message


def format_error(error: CniError, version: str) -> bytes:
    """Return the error form; what is very long in it is cut."""
    text = str(error)
    if len(text) > _LONGEST_TEXT:
        text = f"{text[: _LONGEST_TEXT - 3]}..."
    document = {"cniVersion": version, "code": error.code, "msg": text}
    if error.details:
        document["details"] = error.details
    return _dumped(document)


def format_result(
    request: CniRequest,
    attachment: Attachment,
    subnet: Subnet,
    defaults: Collection[Family] = FAMILIES,
) -> bytes:
    """Return the result of an ADD, what earlier plugins of a chain did before ours.

    ``subnet`` is the node's own. ``defaults`` are the families whose default
    route was made: another interface of the pod may have brought one. Raises
    CniError for one that the plugin would not take.
    """
    before = previous_result(request.config)
    pod = {"name": attachment.key.interface, "mac": attachment.mac, "sandbox": attachment.sandbox}
    ours: list[dict[str, Any]] = [
        {"name": attachment.link, "mac": link_mac(attachment.link, "host")},
        pod,
    ]
    if attachment.mode == BRIDGE:
        ours.insert(0, {"name": POD_BRIDGE, "mac": POD_BRIDGE_MAC})
    if _is_at_least(request.version, "1.1.0"):
        ours = [{**item, "mtu": attachment.mtu} for item in ours]
    interfaces = [*(before.get("interfaces") or []), *ours]
    ways = [_way(attachment, address, subnet) for address in attachment.addresses]
    ips = [
        {
            **_version_key(request.version, family.value),
            "interface": len(interfaces) - 1,
            "address": own,
            "gateway": gateway,
        }
        for family, own, gateway in ways
    ]
    routes = [
        {"dst": "0.0.0.0/0" if family is Family.IPV4 else "::/0", "gw": gateway}
        for family, _, gateway in ways
        if family in defaults
    ]
    return _result(
        request,
        before,
        interfaces=interfaces,
        ips=[*(before.get("ips") or []), *ips],
        routes=[*(before.get("routes") or []), *routes],
    )


def _way(attachment: Attachment, address: IPAddress, subnet: Subnet) -> tuple[Family, str, str]:
    """Return an address' family, the address with its prefix length, and its gateway."""
    family = family_of(address)
    network = subnet.network(family) if attachment.mode == BRIDGE else None
    if network is None:
        return family, f"{address}/{family.bits}", _OWN_GATEWAY[family]
    return family, f"{address}/{network.prefixlen}", str(network[1])


def format_ipam_result(request: CniRequest, attachment: Attachment, subnet: Subnet) -> bytes:
    """Return the result of an ADD that asked for addresses alone: no interfaces in it."""
    ips = []
    for address in attachment.addresses:
        network = subnet.network(family_of(address))
        if network is not None:
            ips.append(
                {
                    **_version_key(request.version, address.version),
                    "address": f"{address}/{network.prefixlen}",
                    "gateway": str(network[1]),
                }
            )
    routes = wanted_routes(request)
    if routes is None:
        routes = [{"dst": "0.0.0.0/0" if ":" not in ip["address"] else "::/0"} for ip in ips]
    return _result(request, {}, ips=ips, routes=routes)


def _result(request: CniRequest, before: Mapping[str, Any], **parts: Any) -> bytes:
    dns = before.get("dns") or request.config.get("dns")
    document = {"cniVersion": request.version, **parts}
    if isinstance(dns, dict) and dns:
        document["dns"] = dns
    text = _dumped(document)
    if len(text) > LONGEST_ANSWER:
        msg = f'"prevResult": with it the result has {len(text)} bytes, of {LONGEST_ANSWER} at most'
        raise CniError(BAD_CONFIG, msg)
    return text


def _dumped(document: Mapping[str, Any]) -> bytes:
    """Return JSON in UTF-8, not longer than it came in. Half a surrogate pair stays an escape."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")


def _version_key(version: str, family: int) -> dict[str, str]:
    """Return ``ips[].version``, which there is only before 1.0.0."""
    return {} if _is_at_least(version, "1.0.0") else {"version": str(family)}


def _is_at_least(version: str, other: str) -> bool:
    return VERSIONS.index(version) >= VERSIONS.index(other)
