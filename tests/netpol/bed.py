"""Three nodes with places for the pods of random worlds, on the kernel.

One namespace a node, one for each address that a pod may have, one between
the nodes that is the outside as well. All neighbors are permanent: the first
packet of a connection waits for nobody.
"""

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from overlay.lab import netns
from overlay.model.address import IPAddress
from overlay.model.netpol import Flow
from tests.netpol.prober import Door, Prober, Question, probing
from tests.netpol.worlds import LAST_PLACE, NODE_ADDRESSES, NODES, OUTSIDE, PORTS, place

_PLACES: Final = range(2, LAST_PLACE + 1)
_DEFAULTS: Final = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/all/accept_dad": "0",
}


@dataclass(frozen=True, slots=True)
class Bed:
    """The namespaces, who listens in them, and where each address lives."""

    nodes: Mapping[str, str]  # namespace by node
    homes: Mapping[IPAddress, str]  # namespace by address
    prober: Prober

    def question(self, flow: Flow, *, should_answer: bool) -> Question:
        """Return a connection as something to ask."""
        return Question(
            self.homes[flow.source],
            flow.destination,
            flow.protocol,
            flow.port,
            should_answer,
            flow.source,
        )


@contextlib.contextmanager
def bed() -> Iterator[Bed]:
    """Make the namespaces for the length of a ``with`` block."""
    prefix = f"ovt-{secrets.token_hex(3)}-"
    middle = f"{prefix}m"
    nodes = {name: f"{prefix}{name}" for name in NODES}
    pods = {(node, last): f"{prefix}{node}p{last}" for node in NODES for last in _PLACES}
    names = [middle, *nodes.values(), *pods.values()]
    netns.add(names)
    try:
        netns.inside_each(names, lambda _: netns.write_sysctls(_DEFAULTS))
        _wire(middle, nodes, pods)
        homes: dict[IPAddress, str] = dict.fromkeys(OUTSIDE, middle)
        for node, namespace in nodes.items():
            homes |= dict.fromkeys(NODE_ADDRESSES[node], namespace)
        for (node, last), namespace in pods.items():
            homes |= {place(version, NODES.index(node) + 1, last): namespace for version in (4, 6)}
        doors = [Door(namespace, [address], PORTS) for address, namespace in homes.items()]
        with probing(doors) as prober:
            yield Bed(nodes, homes, prober)
    finally:
        netns.delete(names)


def _wire(middle: str, nodes: Mapping[str, str], pods: Mapping[tuple[str, int], str]) -> None:
    netns.ip_batch(middle, [f"addr add {address} dev lo" for address in OUTSIDE])
    for number, (node, namespace) in enumerate(nodes.items(), 1):
        upper, lower = f"02:00:00:01:00:{number:02x}", f"02:00:00:02:00:{number:02x}"
        _pair(middle, f"port{number}", upper, namespace, "up0", lower)
        own: dict[int, IPAddress] = {each.version: each for each in NODE_ADDRESSES[node]}
        netns.ip_batch(
            namespace,
            [f"addr add {address} dev up0" for address in own.values()] + _default("up0", upper),
        )
        port = f"port{number}"
        for version, network in ((4, f"10.244.{number}.0/24"), (6, f"fd00:10:244:{number}::/64")):
            netns.ip_batch(
                middle,
                [
                    f"neigh add {own[version]} lladdr {lower} dev {port} nud permanent",
                    f"route add {own[version]} dev {port}",
                    f"route add {network} via {own[version]} dev {port} onlink",
                ],
            )
    for (node, last), namespace in pods.items():
        number = NODES.index(node) + 1
        upper, lower = (
            f"02:00:00:03:{number:02x}:{last:02x}",
            f"02:00:00:04:{number:02x}:{last:02x}",
        )
        _pair(nodes[node], f"opod{last}", upper, namespace, "eth0", lower)
        here = [place(version, number, last) for version in (4, 6)]
        netns.ip_batch(
            namespace,
            [f"addr add {address} dev eth0" for address in here] + _default("eth0", upper),
        )
        netns.ip_batch(
            nodes[node],
            [
                line
                for address in here
                for line in (
                    f"neigh add {address} lladdr {lower} dev opod{last} nud permanent",
                    f"route add {address} dev opod{last}",
                )
            ],
        )


def _pair(upper: str, port: str, port_mac: str, lower: str, name: str, mac: str) -> None:
    ends = f"{port} address {port_mac} type veth peer name {name} address {mac} netns {lower}"
    netns.ip_batch(upper, [f"link add {ends}", f"link set {port} up"])
    netns.ip_batch(lower, [f"link set {name} up"])


def _default(device: str, mac: str) -> list[str]:
    """Return the commands for a way out to the neighbor with ``mac``."""
    return [
        f"neigh add 169.254.1.1 lladdr {mac} dev {device} nud permanent",
        f"neigh add fe80::1 lladdr {mac} dev {device} nud permanent",
        f"route add default via 169.254.1.1 dev {device} onlink",
        f"route add default via fe80::1 dev {device} onlink",
    ]
