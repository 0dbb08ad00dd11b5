"""Faults in the way of a packet, on the node ``n1`` while its agent is away.

The agent would put most of it right within milliseconds. Each is planted by
commands as an administrator, or another program, would run them.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from overlay.kernel.links import list_links
from overlay.kernel.rtnl import RtnlSocket
from overlay.lab import agents, netns
from overlay.lab.errors import LabError
from overlay.lab.fabric import Lab
from overlay.lab.topology import POD_NETWORKS
from overlay.model.address import Family

_HERE, _THERE = "n1", "n2"
_DEVICE: Final = "overlay.1"
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class WayFault:
    """One fault. Commands run on the node, names in braces are filled in by ``names``.

    ``undo`` is what the agent does not put right when it comes back.
    """

    name: str
    plant: tuple[str, ...]
    expected: str
    asked: str = "{pod1} {pod2}"
    undo: tuple[str, ...] = ()
    where: str = _HERE


WAYS: Final = (
    WayFault(
        "wrong FDB entry",
        ("bridge fdb replace {mac2} dev overlay.1 dst 192.0.2.99 self permanent",),
        "n2 is at {public2}, as its lease says",
    ),
    WayFault(
        "missing FDB entry",
        ("bridge fdb del {mac2} dev overlay.1",),
        "there is no forwarding entry for {mac2}",
    ),
    WayFault(
        "missing neighbor",
        ("ip neigh del {gateway2} dev overlay.1",),
        "there is no neighbor entry for {gateway2}",
    ),
    WayFault(
        "neighbor with another's MAC",
        ("ip neigh replace {gateway2} lladdr 02:00:00:00:00:77 dev overlay.1 nud permanent",),
        "n2 has the MAC address {mac2}, as its lease says",
    ),
    WayFault(
        "route deleted",
        ("ip route del {net2}",),
        "the route to {net2} of n2 is gone",
    ),
    WayFault(
        "FORWARD drop",
        ("iptables -P FORWARD DROP",),
        "the policy of ip filter FORWARD drops it",
        undo=("iptables -P FORWARD ACCEPT",),
    ),
    WayFault(
        "MTU one byte too large",
        # The kernel refuses a device that is too large from the start.
        ("ip link set eth0 mtu 1499",),
        "packets of 1450 bytes do not fit the underlay",
        undo=("ip link set eth0 mtu 1500",),
    ),
    WayFault(
        "tunnel port blocked by a firewall of the node",
        (
            "nft add table inet fw",
            "nft add chain inet fw out {{ type filter hook output priority 0 ; }}",
            "nft add rule inet fw out udp dport 8472 counter drop",
        ),
        "inet fw out drops it",
        undo=("nft delete table inet fw",),
    ),
    WayFault(
        "tunnel port blocked in the underlay",
        (
            "nft add table bridge fw",
            "nft add chain bridge fw pass {{ type filter hook forward priority 0 ; }}",
            "nft add rule bridge fw pass udp dport 8472 counter drop",
        ),
        "it left by eth0, and no answer came: lost in the underlay or on n2",
        asked="{pod1} {pod2} --live",
        undo=("nft delete table bridge fw",),
        where="underlay",
    ),
    WayFault(
        "stale peer, whose lease is gone",
        ("ip route add {stale} via {stale_gateway} dev overlay.1 onlink proto 79",),
        "stale: no node holds a lease for {stale} any more",
        asked="{pod1} {stale_gateway}",
    ),
    WayFault(
        "device down",
        ("ip link set overlay.1 down",),
        "overlay.1 is down, and its routes went with it",
    ),
    WayFault(
        "rule for nodes gone",
        ("ip rule del priority 20310",),
        "the rule for what pods send to nodes is gone",
        asked="{pod1} {public2}",
    ),
    WayFault(
        "peer missing in the set of nodes",
        ("nft delete element inet overlay ov_nodes4 {{ {public2} }}",),
        "nft add element inet overlay ov_nodes4",
    ),
    WayFault(
        "peer on another VNI",
        (
            "ip link del overlay.1",
            "ip link add overlay.1 type vxlan id 7 dstport 8472 local {public1} dev eth0",
            "ip link set overlay.1 alias overlay-fabric up",
        ),
        "n2 listens on VNI 1, as its lease says, overlay.1 on 7",
    ),
    WayFault(
        "pod's default route gone",
        ("nsenter --net={sandbox1} ip route del default",),
        "the pod has no route to {pod2}",
        undo=("nsenter --net={sandbox1} ip route add default via 169.254.1.1 dev eth0 onlink",),
    ),
    WayFault(
        "host's end of the pod's link down",
        ("ip link set {link1} down",),
        "the host's end {link1} is down",
        undo=("ip link set {link1} up", "ip route replace {pod1}/32 dev {link1} proto 80"),
    ),
    WayFault(
        "forwarding switched off",
        ("sysctl -qw net.ipv4.ip_forward=0",),
        "this node does not forward packets",
    ),
)


def names(lab: Lab) -> dict[str, str]:
    """Return what the braces stand for in this lab. Raises LabError."""
    pods = {pod.node: pod for pod in reversed(lab.pods())}
    here, there = pods[_HERE], pods[_THERE]
    hosts = {host.name: host for host in lab.topology.nodes}
    subnets = {n: f.subnets[Family.IPV4].network for n, f in lab.subnet_files().items()}
    taken = {*subnets.values()}
    free = (n for n in ip_network(POD_NETWORKS[Family.IPV4]).subnets(new_prefix=24))
    stale = next(network for network in free if network not in taken)
    return {
        "pod1": str(here.addresses[Family.IPV4]),
        "pod2": str(there.addresses[Family.IPV4]),
        "link1": here.host_link,
        "sandbox1": f"/run/netns/{here.namespace}",
        "public1": str(hosts[_HERE].address(Family.IPV4)),
        "public2": str(hosts[_THERE].address(Family.IPV4)),
        "net2": str(subnets[_THERE]),
        "gateway2": str(subnets[_THERE].network_address),
        "mac2": netns.inside(hosts[_THERE].namespace, _tunnel_mac),
        "stale": str(stale),
        "stale_gateway": str(stale.network_address),
    }


@contextmanager
def planted(lab: Lab, fault: WayFault, known: Mapping[str, str]) -> Iterator[None]:
    """Kill the agent of ``n1``, plant ``fault``, and put all right afterwards."""
    host = next(host for host in lab.topology.nodes if host.name == _HERE)
    state = lab.dir.read()
    running = lab.agent(_HERE)
    if running.is_alive:
        os.kill(running.pid, signal.SIGKILL)
    try:
        for line in fault.plant:
            _run(lab, fault.where, line.format(**known))
        yield
    finally:
        for line in fault.undo:
            _run(lab, fault.where, line.format(**known))
        started = agents.start(lab.topology, host, lab.dir)
        kept = [p for p in state.processes if p.role != running.role]
        lab.dir.write(type(state)(state.options, state.is_ready, (*kept, started)))
        agents.wait_ready([host], {_HERE: started}, lab.dir, lambda _: None)


def asked(
    lab: Lab, fault: WayFault, known: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Return what ``overlayctl explain`` says of the way that ``fault`` is in."""
    words = [
        *agents.program("overlayctl", "overlay.cli.main"),
        *("--socket", str(lab.dir.node(_HERE) / "cni.sock")),
        *("--etcd-endpoints", lab.topology.etcd_endpoint),
        *("explain", *fault.asked.format(**known).split()),
    ]
    return subprocess.run(
        lab.command(_HERE, words),
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )


def _run(lab: Lab, where: str, line: str) -> None:
    done = subprocess.run(
        lab.command(where, shlex.split(line)),
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode != 0:
        msg = f"`{line}` on {where}: {done.stderr.strip()}"
        raise LabError(msg)


def _tunnel_mac() -> str:
    with RtnlSocket() as rtnl:
        return list_links(rtnl)[_DEVICE].mac
