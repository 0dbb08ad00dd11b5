"""CHECK: whether a pod's interface is still what the runtime was told."""

import struct
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from overlay.kernel import messages, parse
from overlay.kernel.links import list_links
from overlay.kernel.pod_namespace import PodNamespace, open_pod_rtnl
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import FAMILIES, IPAddress, IPNetwork
from overlay.model.node import POD_BRIDGE

_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_MAIN_TABLE: Final = 254


@dataclass(frozen=True, slots=True)
class Expected:
    """What should be there, by the result that the runtime kept. ``mac`` is empty where unknown."""

    interface: str
    host_interface: str
    mac: str
    addresses: tuple[IPAddress, ...]
    routes: tuple[tuple[IPNetwork, IPAddress | None], ...] = ()
    is_bridged: bool = False


def faults(rtnl: RtnlSocket, netns: PodNamespace, expected: Expected) -> list[str]:
    """Return what is not as expected; what others added does not count."""
    found: list[str] = []
    links = list_links(rtnl)
    host = links.get(expected.host_interface)
    way = links.get(POD_BRIDGE) if expected.is_bridged else host
    if host is None or not host.is_up:
        found.append(f"interface {expected.host_interface} of the host is missing or down")
    elif way is None or not way.is_up:
        found.append(f"interface {POD_BRIDGE} of the host is missing or down")
    else:
        if expected.is_bridged and host.master != way.index:
            found.append(f"interface {host.name} of the host is not on {way.name}")
        found += [
            f"route {address} dev {way.name} of the host is missing"
            for address in expected.addresses
            if not _leads_to(rtnl, address, way.index)
        ]
    name = expected.interface
    with open_pod_rtnl(netns) as inside:
        pod = list_links(inside).get(name)
        if pod is None:
            return [*found, f"interface {name} is missing"]
        if not pod.is_up:
            found.append(f"interface {name} is down")
        if expected.mac and pod.mac != expected.mac:
            found.append(f"interface {name} has MAC {pod.mac}, not {expected.mac}")
        answer = inside.dump(messages.RTM_GETADDR, messages.addresses_request(pod.index))
        present = {a.address.ip for a in parse.addresses(answer, name, pod.index)}
        found += [
            f"address {a} is missing on {name}" for a in expected.addresses if a not in present
        ]
        routes = _routes(inside)
        for prefix, gateway in expected.routes:
            if not any(p == prefix and gateway in {None, g} for p, g in routes):
                via = f" via {gateway}" if gateway is not None else ""
                found.append(f"route {prefix}{via} is missing")
    return found


def _leads_to(rtnl: RtnlSocket, address: IPAddress, index: int) -> bool:
    answer = rtnl.ask(messages.RTM_GETROUTE, messages.route_query(ip_network(address)))
    return answer is not None and parse.route_maker(answer)[1] == index


def _routes(inside: RtnlSocket) -> set[tuple[IPNetwork, IPAddress | None]]:
    """Return prefix and gateway of every route in the pod's main table."""
    found = set()
    for family in FAMILIES:
        body = _RTMSG.pack(messages.AF[family], 0, 0, 0, _MAIN_TABLE, 0, 0, 0, 0)
        for data, start, end in inside.dump(messages.RTM_GETROUTE, body):
            found.add(parse.route_way(data, start, end))
    return found
