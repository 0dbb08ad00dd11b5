"""A lab whose nodes are machines for runtimes, and what is asked of it from outside."""

import json
import shutil
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from overlay.lab.fabric import running
from overlay.lab.topology import LabOptions
from overlay.model.address import FAMILIES, IPAddress, IPNetwork
from overlay_cni.install import install_plugin, install_shim, own_interpreter
from tests.kernel.netns import eventually
from tests.runtime.image import PAGE, PORT, write_image
from tests.runtime.machine import Machine, remove_cgroups
from tests.runtime.runtimes import CONFLISTS, DAEMON, REFERENCE_PLUGINS, Executor
from tests.unit.cni_plugins import build

# Beside ours in the machines' plugin directory; CRI brings up `lo` by a plugin.
CHAINED: Final = ("portmap", "bandwidth", "tuning", "firewall", "loopback")


class Site:
    """A lab of two nodes without pods of its own, and each node as a machine."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        options = LabOptions(name=f"t-{uuid4().hex[:8]}", nodes=2, pods=0, families=FAMILIES)
        self.place = place
        self.image = place / "image.tar"
        write_image(self.image)
        self.lab = stack.enter_context(running(options))
        self.machines: dict[str, Machine] = {}
        for node in self.lab.topology.nodes:
            cgroup = self.cgroup(node.name)
            stack.callback(remove_cgroups, cgroup)
            machine = Machine(
                node.name, node.namespace, self.lab.dir.node(node.name), place / node.name
            )
            stack.callback(machine.close)
            self.machines[node.name] = machine

    def cgroup(self, node: str) -> str:
        return f"{self.lab.options.name}-{node}"

    def install(self, form: str, conflist: str = "") -> None:
        """Put a form of the plugin, and a network configuration as shipped, on both nodes."""
        built = build(form, self.place / form).path if form == "shim" else None
        for machine in self.machines.values():
            if built is None:
                install_plugin(machine.plugins / "overlay", own_interpreter())
            else:
                install_shim(machine.plugins / "overlay", built)
            for name in CHAINED:
                beside = machine.plugins / name
                beside.unlink(missing_ok=True)
                beside.symlink_to(REFERENCE_PLUGINS / name)
            for old in machine.networks.iterdir():
                old.unlink()
            if conflist:
                shutil.copy(CONFLISTS / conflist, machine.networks)

    def rules(self, node: str) -> str:
        """Return the packet filter and the queues of a node, without counters."""
        machine = self.machines[node]
        return machine.run("nft", "--stateless", "list", "ruleset") + machine.run("tc", "qdisc")

    def subnets(self, node: str) -> list[IPNetwork]:
        """Return what a node leases, by its subnet file."""
        return [interface.network for interface in self.lab.subnet_files()[node].subnets.values()]

    def links(self, node: str) -> list[dict[str, Any]]:
        return list(json.loads(self.machines[node].run("ip", "-j", "-s", "-d", "link")))

    def attachments(self, node: str) -> list[dict[str, Any]]:
        files = (self.machines[node].state / "attachments").glob("*.json")
        return [json.loads(file.read_text()) for file in files]

    def tunneled(self, node: str) -> int:
        """Return how many packets the node's VXLAN device has sent."""
        devices = [d for d in self.links(node) if _kind(d) == "vxlan"]
        return sum(int(device["stats64"]["tx"]["packets"]) for device in devices)

    def left(self, node: str) -> list[str]:
        """Return what a container may leave on a node: links, attachments, routes, processes."""
        machine = self.machines[node]
        found = [link["ifname"] for link in self.links(node) if link["ifname"].startswith("opod")]
        found += [json.dumps(attachment) for attachment in self.attachments(node)]
        for family in ("-4", "-6"):
            found += machine.run("ip", family, "route", "show", "proto", "80").splitlines()
        return found + [w for w in machine.processes().values() if not w.startswith(DAEMON)]


def _kind(link: dict[str, Any]) -> str:
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def addresses(runtime: Executor, container: str) -> list[IPAddress]:
    """Return the addresses of a container's eth0, as it sees them."""
    words = runtime.execute(container, "ip", "-o", "addr", "show", "dev", "eth0").split()
    given = [words[at + 1] for at, word in enumerate(words) if word in {"inet", "inet6"}]
    found = [ip_address(text.split("/")[0]) for text in given]
    return [address for address in found if not address.is_link_local]


def ask(runtime: Executor, container: str, target: IPAddress, port: int = PORT) -> IPAddress:
    """Return the address that a container is seen with by the one at ``target``."""
    return seen_in(runtime.execute(container, "sh", "-c", request_for(target, port)))


def request_for(target: IPAddress, port: int = PORT) -> str:
    """Return the shell's words that ask for the page at ``target``."""
    # Not wget: Debian's static one crashes without the host's name service.
    return f"printf 'GET /{PAGE} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {target} {port}"


def seen_in(answer: str) -> IPAddress:
    """Return the client's address in an answer to ``request_for``."""
    seen = ip_address(answer.rpartition("\n")[2].strip("[]"))
    mapped = seen.ipv4_mapped if isinstance(seen, IPv6Address) else None
    return mapped or seen


def nothing_is_left(site: Site, node: str) -> None:
    eventually(
        lambda: site.left(node) == [], timeout_s=20, what=f"{node} without {site.left(node)}"
    )
