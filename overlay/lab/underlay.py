"""The underlay: a bridge that the nodes hang on, a router, a host behind it.

One namespace holds bridge and router. The outside host sends everything to
the router; the router knows the underlay and, where it is told, pod subnets.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from overlay.lab import netns
from overlay.lab.topology import NODE_DEVICE, Host, Topology, router_interface
from overlay.model.address import Family, IPInterface

BRIDGE: Final = "br0"


def build(topology: Topology) -> None:
    """Make the underlay's, the nodes' and the outside host's namespaces and wire them.

    Raises LabError; what was made by then is for ``netns.delete`` to remove.
    """
    hosts = (*topology.nodes, topology.outside)
    netns.add((topology.underlay, *(host.namespace for host in hosts)))
    families = topology.options.families
    netns.inside(topology.underlay, lambda: netns.write_sysctls(_router_sysctls()))
    netns.ip_batch(topology.underlay, _router_commands(topology))
    by_namespace = {host.namespace: host for host in hosts}

    def configure(namespace: str) -> None:
        # Only this device: duplicate address detection on the devices that
        # the agent makes stays as a stock kernel does it.
        netns.write_sysctls({f"ipv6/conf/{NODE_DEVICE}/accept_dad": "0"})
        netns.ip_batch(None, _host_commands(by_namespace[namespace], families))

    netns.inside_each(by_namespace, configure)


def route_pods(topology: Topology, subnets: Mapping[str, Mapping[Family, IPInterface]]) -> None:
    """Give the router a route to each node's pod subnet by way of the node.

    ``subnets`` is keyed by node name. Repeating it is safe.
    """
    netns.ip_batch(
        topology.underlay,
        [
            f"route replace {gateway.network} via {node.address(family)} dev {BRIDGE}"
            for node in topology.nodes
            for family, gateway in subnets[node.name].items()
        ],
    )


def _router_sysctls() -> dict[str, str]:
    return {
        "ipv4/ip_forward": "1",
        "ipv6/conf/all/forwarding": "1",
        "ipv6/conf/default/accept_dad": "0",
        # Every probe that has nowhere to go hears so, not one a second.
        "ipv4/icmp_ratelimit": "0",
        "ipv6/icmp/ratelimit": "0",
    }


def _router_commands(topology: Topology) -> list[str]:
    mtu = topology.options.mtu
    far_end = f"name {NODE_DEVICE} mtu {mtu}"
    commands = [f"link add {BRIDGE} mtu {mtu} type bridge stp_state 0"]
    commands += [
        f"link add {host.port} mtu {mtu} type veth peer {far_end} netns {host.namespace}"
        for host in (*topology.nodes, topology.outside)
    ]
    commands += [f"link set {node.port} master {BRIDGE} up" for node in topology.nodes]
    commands += [f"link set {BRIDGE} mtu {mtu} up", f"link set {topology.outside.port} up"]
    for family in topology.options.families:
        inner, outer = router_interface(family), router_interface(family, outside=True)
        commands += [
            f"addr add {inner} dev {BRIDGE}{_nodad(family)}",
            f"addr add {outer} dev {topology.outside.port}{_nodad(family)}",
        ]
    return commands


def _host_commands(host: Host, families: Sequence[Family]) -> list[str]:
    commands = [f"link set {NODE_DEVICE} up"]
    for family in families:
        commands += [
            f"addr add {host.interfaces[family]} dev {NODE_DEVICE}{_nodad(family)}",
            f"route add default via {host.gateways[family]} dev {NODE_DEVICE}",
        ]
    return commands


def _nodad(family: Family) -> str:
    return " nodad" if family is Family.IPV6 else ""
