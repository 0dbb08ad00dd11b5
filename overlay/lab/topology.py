"""The plan of a lab: its names and addresses, from its options alone.

Documentation ranges stand for the underlay (RFC 5737, RFC 3849), so that no
lab can be mistaken for a network that somebody runs.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any, Final

from overlay.lab.errors import LabUsageError
from overlay.model.address import Family, IPAddress, IPInterface
from overlay.model.egress import EgressMode
from overlay.model.network import NetworkConfig, parse_network_config

NODE_DEVICE: Final = "eth0"  # in nodes, pods and the outside host alike
ETCD_PORT: Final = 2379
POD_NETWORKS: Final = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:10:244::/48"}
MOST_NODES: Final = 250
MOST_PODS: Final = 200  # a node; its /24 has 254 addresses
MTU_RANGE: Final = range(1400, 9217)  # bytes; IPv6 needs 1280 inside the tunnel

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?\Z")
_ROUTER_HOST: Final = 254  # 192.0.2.254, 2001:db8:1::fe
_UNDERLAY_NETS: Final[Mapping[Family, IPInterface]] = {
    Family.IPV4: IPv4Interface("192.0.2.0/24"),
    Family.IPV6: IPv6Interface("2001:db8:1::/64"),
}
_OUTSIDE_NETS: Final[Mapping[Family, IPInterface]] = {
    Family.IPV4: IPv4Interface("198.51.100.0/24"),
    Family.IPV6: IPv6Interface("2001:db8:2::/64"),
}


@dataclass(frozen=True, slots=True)
class LabOptions:
    """What a lab is made of; ``mtu`` is the underlay's, in bytes."""

    name: str = "default"
    nodes: int = 3
    pods: int = 2  # on each node
    backend: str = "vxlan"
    families: tuple[Family, ...] = (Family.IPV4,)
    egress: EgressMode = EgressMode.ISLAND
    direct_routing: bool = False
    mtu: int = 1500
    etcd_members: int = 1
    subnet_len: int | None = None  # of a node's IPv4 subnet; None for the network's default

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            msg = f"lab name {self.name!r}: use up to 20 of a-z, 0-9 and -"
            raise LabUsageError(msg)
        _within("--nodes", self.nodes, range(1, MOST_NODES + 1))
        _within("--pods", self.pods, range(MOST_PODS + 1))
        _within("--mtu", self.mtu, MTU_RANGE)
        _within("etcd members", self.etcd_members, range(1, 10, 2))
        if self.direct_routing and self.backend != "vxlan":
            msg = f"--direct-routing is an option of vxlan, not of {self.backend}"
            raise LabUsageError(msg)

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return {
            "name": self.name,
            "nodes": self.nodes,
            "pods": self.pods,
            "backend": self.backend,
            "families": [family.value for family in self.families],
            "egress": self.egress.value,
            "direct_routing": self.direct_routing,
            "mtu": self.mtu,
            "etcd_members": self.etcd_members,
            "subnet_len": self.subnet_len,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "LabOptions":
        """Return the options that ``to_json`` wrote."""
        values = dict(document)
        values["families"] = tuple(Family(version) for version in values["families"])
        values["egress"] = EgressMode(values["egress"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of the lab: a node or the outside host, one namespace each."""

    name: str
    namespace: str
    port: str  # the other end of its eth0, in the underlay's namespace
    interfaces: Mapping[Family, IPInterface]
    gateways: Mapping[Family, IPAddress]

    def address(self, family: Family) -> IPAddress:
        """Return the host's address on the underlay."""
        return self.interfaces[family].ip


@dataclass(frozen=True, slots=True)
class PodPlace:
    """A pod before it has an address: the node numbers its pods from 0."""

    name: str
    namespace: str
    node: str
    index: int


@dataclass(frozen=True, slots=True)
class Topology:
    """Every name and address that follows from the options."""

    options: LabOptions
    underlay: str  # namespace
    nodes: tuple[Host, ...]
    outside: Host
    pods: tuple[PodPlace, ...]

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Return the namespaces of the lab, the underlay first."""
        return (
            self.underlay,
            self.outside.namespace,
            *(node.namespace for node in self.nodes),
            *(pod.namespace for pod in self.pods),
        )

    @property
    def etcd_host(self) -> IPAddress:
        """Return where etcd listens: the router's address towards the nodes."""
        return router_interface(self.options.families[0]).ip

    @property
    def etcd_endpoint(self) -> str:
        """Return the URL of etcd's first member."""
        return self.etcd_endpoints[0]

    @property
    def etcd_endpoints(self) -> tuple[str, ...]:
        """Return the URLs of etcd's members; the odd ports are theirs, the even ones for peers."""
        host = self.etcd_host
        shown = f"[{host}]" if host.version == 6 else str(host)
        ports = range(ETCD_PORT, ETCD_PORT + 2 * self.options.etcd_members, 2)
        return tuple(f"http://{shown}:{port}" for port in ports)

    @property
    def config_text(self) -> str:
        """Return the network config of the fabric, as JSON."""
        options = self.options
        backend: dict[str, Any] = {"Type": options.backend}
        if options.direct_routing:
            backend["DirectRouting"] = True
        document: dict[str, Any] = {
            "EnableIPv4": Family.IPV4 in options.families,
            "EnableIPv6": Family.IPV6 in options.families,
            "Backend": backend,
            "Egress": {"Mode": options.egress.value},
        }
        if Family.IPV4 in options.families:
            document["Network"] = POD_NETWORKS[Family.IPV4]
            if options.subnet_len is not None:
                document["SubnetLen"] = options.subnet_len
        if Family.IPV6 in options.families:
            document["IPv6Network"] = POD_NETWORKS[Family.IPV6]
        return json.dumps(document, indent=2)

    @property
    def config(self) -> NetworkConfig:
        """Return the network config as the agents will read it."""
        return parse_network_config(self.config_text)

    @property
    def expected_pod_mtu(self) -> int | None:
        """Return the largest packet a pod may send, in bytes; None for a backend not known here.

        Worked out here once more, so that a backend that is wrong is found.
        """
        options = self.options
        if options.backend == "vxlan":
            return options.mtu - max(f.encapsulation_overhead for f in options.families)
        return options.mtu if options.backend == "host-gw" else None

    def namespace_of(self, target: str) -> str:
        """Return the namespace of a node, a pod, ``outside`` or ``underlay``.

        Raises LabUsageError that lists what there is.
        """
        places = {"underlay": self.underlay, "outside": self.outside.namespace}
        places |= {host.name: host.namespace for host in self.nodes}
        places |= {pod.name: pod.namespace for pod in self.pods}
        if target not in places:
            msg = f"lab {self.options.name} has no {target!r}; there are {', '.join(places)}"
            raise LabUsageError(msg)
        return places[target]


def plan(options: LabOptions) -> Topology:
    """Return the topology that the options describe; equal options give an equal plan."""
    prefix = namespace_prefix(options.name)
    names = [f"n{number}" for number in range(1, options.nodes + 1)]
    nodes = tuple(
        _host(options, name, prefix + name, _UNDERLAY_NETS, number)
        for number, name in enumerate(names, start=1)
    )
    pods = tuple(
        PodPlace(f"{name}-p{index + 1}", f"{prefix}{name}-p{index + 1}", name, index)
        for name in names
        for index in range(options.pods)
    )
    outside = _host(options, "outside", f"{prefix}outside", _OUTSIDE_NETS, 1)
    return Topology(options, f"{prefix}underlay", nodes, outside, pods)


def namespace_prefix(name: str) -> str:
    """Return what the names of all of a lab's namespaces begin with."""
    return f"ovl-{name}-"


def router_interface(family: Family, *, outside: bool = False) -> IPInterface:
    """Return the router's address towards the nodes or towards the outside host."""
    return _numbered((_OUTSIDE_NETS if outside else _UNDERLAY_NETS)[family], _ROUTER_HOST)


def _host(
    options: LabOptions,
    name: str,
    namespace: str,
    nets: Mapping[Family, IPInterface],
    number: int,
) -> Host:
    return Host(
        name=name,
        namespace=namespace,
        port=name,
        interfaces={f: _numbered(nets[f], number) for f in options.families},
        gateways={f: _numbered(nets[f], _ROUTER_HOST).ip for f in options.families},
    )


def _numbered(net: IPInterface, number: int) -> IPInterface:
    return ip_interface(f"{net.network.network_address + number}/{net.network.prefixlen}")


def _within(flag: str, value: int, allowed: range) -> None:
    if value not in allowed:
        msg = f"{flag} {value} is out of range; use {allowed.start} to {allowed.stop - 1}"
        raise LabUsageError(msg)
