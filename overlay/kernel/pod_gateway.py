"""The host's end of a pod's link answers as the pod's gateway.

    ip addr add 169.254.1.1/32 dev opodX scope host;  ip addr add fe80::1/64 dev opodX nodad

The pod has an entry for its gateway from the start, and loses it when its MAC
address changes (the reference plugin tuning does that, in a chain): it asks
then. The host has no entry for the pod for the same reason, and asks with its
first packet, which a veth pair answers within microseconds. Scope host, so that
the node never chooses that address as its own.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from overlay.kernel import pod_requests
from overlay.kernel.bridge_ports import ADDR_GEN_NONE, address_generation
from overlay.kernel.rtnl import NLM_F_REPLACE, Request
from overlay.model.address import Family, IPAddress, family_of

GATEWAY: Final[dict[Family, IPAddress]] = {
    Family.IPV4: IPv4Address("169.254.1.1"),
    Family.IPV6: IPv6Address("fe80::1"),
}
_LENGTH: Final = {Family.IPV4: 32, Family.IPV6: 64}
_SCOPE: Final = {Family.IPV4: pod_requests.HOST, Family.IPV6: pod_requests.LINK}


def gateway(index: int, pods: Iterable[IPAddress]) -> list[Request]:
    """Return what makes the interface ``index`` the gateway of a pod with these addresses."""
    requests = [address_generation(index, ADDR_GEN_NONE), pod_requests.up(index)]
    for pod in pods:
        family = family_of(pod)
        requests += [
            pod_requests.address(index, GATEWAY[family], _LENGTH[family], _SCOPE[family]),
            pod_requests.link_route(index, pod, NLM_F_REPLACE),
        ]
    return requests
