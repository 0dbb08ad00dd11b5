"""Pods as the lab wires them itself, from what the agent put into its subnet file.

Point to point, no bridge: the pod has a host address and sends everything to
a gateway that exists only as a permanent neighbor; the node has one route for
each pod. To be replaced by the CNI plugin, which makes the same picture.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Final

from overlay.lab import netns
from overlay.lab.errors import LabError
from overlay.lab.topology import NODE_DEVICE, PodPlace, Topology
from overlay.model.address import (
    FAMILIES,
    Family,
    IPAddress,
    IPInterface,
    host_network,
)
from overlay.model.node import POD_LINK_PREFIX

# Link-local addresses that no machine here has; only their MAC is ever used.
GATEWAY: Final[Mapping[Family, IPAddress]] = {
    Family.IPV4: ip_address("169.254.1.1"),
    Family.IPV6: ip_address("fe80::1"),
}
_FIRST_HOST: Final = 2  # .1 is flannel's gateway address, kept free
_SUBNET_KEY: Final = {Family.IPV4: "FLANNEL_SUBNET", Family.IPV6: "FLANNEL_IPV6_SUBNET"}


@dataclass(frozen=True, slots=True)
class SubnetFile:
    """What the lab needs of an agent's subnet file: the node's subnets and the pods' MTU."""

    subnets: Mapping[Family, IPInterface]
    mtu: int  # bytes


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod with its addresses."""

    name: str
    namespace: str
    node: str
    addresses: Mapping[Family, IPAddress]

    @property
    def host_link(self) -> str:
        """Return the name of the node's end of the pod's veth pair."""
        return POD_LINK_PREFIX + hashlib.sha256(self.namespace.encode()).hexdigest()[:8]


def parse_subnet_file(text: str) -> SubnetFile:
    """Return what flannel's variables say (``pkg/subnet/subnet.go``, WriteSubnetFile).

    Raises LabError when the file holds no subnet or no MTU.
    """
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    try:
        subnets = {
            family: ip_interface(values[key])
            for family, key in _SUBNET_KEY.items()
            if values.get(key)
        }
        mtu = int(values["FLANNEL_MTU"])
    except (KeyError, ValueError) as exc:
        msg = f"subnet file: {exc!r} in {text!r}"
        raise LabError(msg) from exc
    if not subnets:
        msg = f"subnet file: neither {' nor '.join(_SUBNET_KEY.values())} in {text!r}"
        raise LabError(msg)
    return SubnetFile(subnets, mtu)


def read_subnet_file(path: Path) -> SubnetFile:
    """Return what an agent's subnet file says. Raises LabError."""
    try:
        return parse_subnet_file(path.read_text())
    except OSError as exc:
        msg = f"subnet file {path}: {exc.strerror}"
        raise LabError(msg) from exc


def place(place_: PodPlace, subnet_file: SubnetFile) -> Pod:
    """Return the pod with the addresses that its number on the node gives it."""
    return Pod(
        name=place_.name,
        namespace=place_.namespace,
        node=place_.node,
        addresses={
            family: subnet.network.network_address + _FIRST_HOST + place_.index
            for family, subnet in subnet_file.subnets.items()
        },
    )


def wire(topology: Topology, subnet_files: Mapping[str, SubnetFile]) -> tuple[Pod, ...]:
    """Make the pods' namespaces and connect each with its node; return the pods.

    ``subnet_files`` is keyed by node name. Raises LabError.
    """
    pods = tuple(place(p, subnet_files[p.node]) for p in topology.pods)
    by_node = {
        node.namespace: [pod for pod in pods if pod.node == node.name] for node in topology.nodes
    }
    netns.add(pod.namespace for pod in pods)
    mtus = {node.namespace: subnet_files[node.name].mtu for node in topology.nodes}

    def attach(node: str) -> None:
        local = by_node[node]
        netns.ip_batch(None, _link_commands(local, mtus[node]))
        for pod in local:
            netns.write_sysctls(_forwarding(pod.host_link))
        netns.ip_batch(None, _node_commands(local))

    by_namespace = {pod.namespace: pod for pod in pods}
    netns.inside_each([node for node, local in by_node.items() if local], attach)
    netns.inside_each(
        by_namespace,
        lambda namespace: netns.ip_batch(None, _pod_commands(by_namespace[namespace])),
    )
    return pods


def _link_commands(pods: Sequence[Pod], mtu: int) -> list[str]:
    return [
        f"link add {pod.host_link} mtu {mtu} address {_mac(pod, 'host')} type veth "
        f"peer name {NODE_DEVICE} mtu {mtu} address {_mac(pod, 'pod')} netns {pod.namespace}"
        for pod in pods
    ]


def _forwarding(device: str) -> dict[str, str]:
    return {
        f"ipv4/conf/{device}/forwarding": "1",
        f"ipv6/conf/{device}/forwarding": "1",
        f"ipv6/conf/{device}/accept_dad": "0",
    }


def _node_commands(pods: Sequence[Pod]) -> list[str]:
    commands = []
    for pod in pods:
        mac = _mac(pod, "pod")
        commands.append(f"link set {pod.host_link} up")
        for family in _families(pod):
            address = pod.addresses[family]
            commands += [
                f"neigh replace {address} lladdr {mac} dev {pod.host_link} nud permanent",
                f"route replace {host_network(address)} dev {pod.host_link}",
            ]
    return commands


def _pod_commands(pod: Pod) -> list[str]:
    commands = [f"link set {NODE_DEVICE} up"]
    for family in _families(pod):
        gateway = GATEWAY[family]
        nodad = " nodad" if family is Family.IPV6 else ""
        commands += [
            f"addr add {host_network(pod.addresses[family])} dev {NODE_DEVICE}{nodad}",
            f"neigh replace {gateway} lladdr {_mac(pod, 'host')} dev {NODE_DEVICE} nud permanent",
            f"route add default via {gateway} dev {NODE_DEVICE} onlink",
        ]
    return commands


def _families(pod: Pod) -> list[Family]:
    return [family for family in FAMILIES if family in pod.addresses]


def _mac(pod: Pod, end: str) -> str:
    """Return a locally administered MAC address, so that neither end must be asked for its."""
    digest = hashlib.sha256(f"{pod.namespace}\0{end}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
