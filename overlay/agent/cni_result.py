"""What the plugin prints: results and errors in the form of each CNI version."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from overlay.agent.cni_request import VERSIONS, CniError, CniRequest, previous_result
from overlay.kernel.pods import GATEWAY
from overlay.model.address import FAMILIES, Family, family_of
from overlay.model.attachment import Attachment
from overlay.model.subnet import Subnet


def format_error(error: CniError, version: str) -> bytes:
    """Return the error form."""
    document = {"cniVersion": version, "code": error.code, "msg": str(error)}
    if error.details:
        document["details"] = error.details
    return json.dumps(document).encode()


def format_result(
    request: CniRequest,
    attachment: Attachment,
    host_mac: str,
    defaults: Collection[Family] = FAMILIES,
) -> bytes:
    """Return the result of an ADD, what earlier plugins of a chain did before ours.

    ``defaults`` are the families whose default route was made: another
    interface of the pod may have brought one.
    """
    before = previous_result(request.config)
    interfaces = list(before.get("interfaces") or [])
    host = {"name": attachment.link, "mac": host_mac}
    pod: dict[str, Any] = {
        "name": attachment.key.interface,
        "mac": attachment.mac,
        "sandbox": attachment.sandbox,
    }
    if _is_at_least(request.version, "1.1.0"):
        host["mtu"] = pod["mtu"] = attachment.mtu  # type: ignore[assignment]  # JSON
    place = len(interfaces) + 1
    ips = [
        {
            **_version_key(request.version, family_of(address).value),
            "interface": place,
            "address": f"{address}/{address.max_prefixlen}",
            "gateway": str(GATEWAY[family_of(address)]),
        }
        for address in attachment.addresses
    ]
    routes = [
        {
            "dst": "0.0.0.0/0" if address.version == 4 else "::/0",
            "gw": str(GATEWAY[family_of(address)]),
        }
        for address in attachment.addresses
        if family_of(address) in defaults
    ]
    return _result(
        request,
        before,
        interfaces=[*interfaces, host, pod],
        ips=[*(before.get("ips") or []), *ips],
        routes=[*(before.get("routes") or []), *routes],
    )


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
    ipam = request.config.get("ipam")
    routes = ipam.get("routes") if isinstance(ipam, dict) else None
    if not isinstance(routes, list):
        routes = [{"dst": "0.0.0.0/0" if ":" not in ip["address"] else "::/0"} for ip in ips]
    return _result(request, {}, ips=ips, routes=routes)


def _result(request: CniRequest, before: Mapping[str, Any], **parts: Any) -> bytes:
    dns = before.get("dns") or request.config.get("dns")
    document = {"cniVersion": request.version, **parts}
    if isinstance(dns, dict) and dns:
        document["dns"] = dns
    return json.dumps(document).encode()


def _version_key(version: str, family: int) -> dict[str, str]:
    """Return ``ips[].version``, which there is only before 1.0.0."""
    return {} if _is_at_least(version, "1.0.0") else {"version": str(family)}


def _is_at_least(version: str, other: str) -> bool:
    return VERSIONS.index(version) >= VERSIONS.index(other)
