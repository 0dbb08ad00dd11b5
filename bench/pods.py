"""Pods to send traffic between: attached by our plugin, or as flannel's own chain does it."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

from bench.bed import Node, namespace
from bench.options import AgentCommand
from overlay.lab import netns
from overlay.lab.pods import plugin_command, read_subnet_file
from overlay.model.address import Family
from overlay.model.errors import OverlayError

_BRIDGE: Final = "cni0"
_FIRST: Final = 10  # host number of the first pod on a bridge


class NotAttachedError(OverlayError):
    """The plugin refused to attach a pod: the text is its own."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod's namespace and IPv4 address."""

    namespace: str
    address: str


@contextlib.contextmanager
def pods(agent: AgentCommand, node: Node, count: int, mode: str = "ptp") -> Iterator[list[Pod]]:
    """Attach pods to a node whose agent is ready, ours in a ``mode``."""
    with contextlib.ExitStack() as stack:
        names = [stack.enter_context(namespace()) for _ in range(count)]
        if agent.is_ours:
            yield [_by_our_plugin(node, name, mode) for name in names]
        else:
            yield _on_a_bridge(node, names)


def _by_our_plugin(node: Node, name: str, mode: str) -> Pod:
    socket = str(node.place / "state" / "cni.sock")
    config = {"cniVersion": "1.0.0", "name": "bench", "type": "overlay", "mode": mode}
    config["socket"] = socket
    done = netns.inside(
        node.namespace,
        lambda: subprocess.run(
            plugin_command(),
            input=json.dumps(config).encode(),
            env={
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": name,
                "CNI_NETNS": str(netns.NETNS_DIR / name),
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "",
            },
            capture_output=True,
            check=False,
        ),
    )
    if done.returncode:
        raise NotAttachedError(f"{name}: {(done.stdout or done.stderr).decode(errors='replace')}")
    answer = json.loads(done.stdout)["ips"][0]["address"]
    return Pod(name, str(IPv4Interface(answer).ip))


def _on_a_bridge(node: Node, names: list[str]) -> list[Pod]:
    """Do what flannel's plugin has ``bridge`` and ``host-local`` do, by ``ip``."""
    file = read_subnet_file(node.place / "subnet.env")
    gateway = file.subnets[Family.IPV4]
    netns.inside(node.namespace, lambda: netns.write_sysctls({"ipv4/ip_forward": "1"}))
    netns.ip_batch(
        node.namespace,
        [
            f"link add {_BRIDGE} mtu {file.mtu} type bridge",
            f"addr add {gateway} dev {_BRIDGE}",
            f"link set {_BRIDGE} up",
        ],
    )
    made = []
    for number, name in enumerate(names):
        address = IPv4Address(int(gateway.network.network_address) + _FIRST + number)
        port, far_end = f"veth{number}", f"name eth0 mtu {file.mtu}"
        netns.ip_batch(
            node.namespace,
            [
                f"link add {port} mtu {file.mtu} type veth peer {far_end} netns {name}",
                f"link set {port} master {_BRIDGE} up",
            ],
        )
        netns.ip_batch(
            name,
            [
                f"addr add {address}/{gateway.network.prefixlen} dev eth0",
                "link set eth0 up",
                f"route add default via {gateway.ip}",
            ],
        )
        made.append(Pod(name, str(address)))
    return made
