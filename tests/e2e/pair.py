"""A lab of two nodes without pods of its own, and pods as tests attach them, by any plugin."""

import json
import socket
import subprocess
from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from overlay.lab import netns
from overlay.lab.fabric import Lab, running
from overlay.lab.topology import LabOptions
from overlay.model.address import FAMILIES, Family, IPAddress, family_of
from tests.e2e.chains import REFERENCE_PLUGINS, Attachment, Chain
from tests.kernel.netns import Netns
from tests.unit.cni_plugins import build

PORT: Final = 8080
# Enough for a connection over a busy machine; what is blocked costs as long.
CONNECT_S: Final = 5.0

needs_reference_plugins: Final = pytest.mark.skipif(
    not (REFERENCE_PLUGINS / "bridge").exists(),
    reason="needs the reference plugins (Debian: containernetworking-plugins)",
)


class Pair:
    """The nodes ``n1`` and ``n2``, our plugin as built, and the namespaces of pods."""

    def __init__(self, lab: Lab, place: Path, form: str = "python") -> None:
        self.lab, self.place = lab, place
        self.path = (build(form, place / "bin").path.parent, REFERENCE_PLUGINS)
        self._pods: list[Netns] = []

    def close(self) -> None:
        """Remove the pods' namespaces."""
        for pod in self._pods:
            pod.close()

    def pod(self) -> Netns:
        """Return the namespace of a new pod."""
        self._pods.append(Netns())
        return self._pods[-1]

    def namespace(self, node: str) -> str:
        return self.lab.topology.namespace_of(node)

    def address(self, node: str, family: Family) -> IPAddress:
        """Return a node's address on the underlay."""
        (host,) = (host for host in self.lab.topology.nodes if host.name == node)
        return host.address(family)

    def socket_path(self, node: str) -> str:
        """Return where a node's agent listens, as a configuration names it."""
        return str(self.lab.dir.node(node) / "cni.sock")

    def subnet_variables(self, node: str) -> dict[str, str]:
        """Return what a node's ``subnet.env`` says."""
        lines = self.lab.dir.subnet_file(node).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def chain(self, node: str, *plugins: Mapping[str, Any], name: str = "fabric") -> Chain:
        """Return a chain of plugins on a node, in the newest version that Debian's speak."""
        conflist = {"cniVersion": "1.0.0", "name": name, "plugins": plugins}
        return Chain(conflist, self.namespace(node), self.path)

    def own(self, node: str, **more: Any) -> dict[str, Any]:
        """Return our plugin's part of a chain."""
        return {"type": "overlay", "socket": self.socket_path(node), **more}

    def run(self, node: str, *words: str) -> str:
        """Return what a command says on a node. Raises AssertionError."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.namespace(node)}", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def links(self, node: str, *which: str) -> list[dict[str, Any]]:
        """Return what ``ip -json link show`` says of a node's links."""
        return list(json.loads(self.run(node, "ip", "-j", "link", "show", *which)))

    def held(self, node: str) -> list[dict[str, Any]]:
        """Return the attachments that a node's agent keeps."""
        files = (self.lab.dir.node(node) / "attachments").glob("*.json")
        return [json.loads(file.read_text()) for file in files]

    def state(self, node: str) -> dict[str, str]:
        """Return what plugins change on a node, as text by subject."""
        state = {"held": json.dumps(self.held(node))}
        state["links"] = " ".join(sorted(link["ifname"] for link in self.links(node)))
        state["qdiscs"] = self.run(node, "tc", "qdisc")
        for family, command in (("-4", "iptables-save"), ("-6", "ip6tables-save")):
            rules = self.run(node, command).splitlines()
            # Counters of a policy change with any packet.
            state[command] = "\n".join(
                line.partition(" [")[0] for line in rules if not line.startswith("#")
            )
            routes = self.run(node, "ip", family, "route", "show", "table", "all")
            state[f"routes {family}"] = "\n".join(
                sorted(line for line in routes.splitlines() if "fe80::" not in line)
            )
            state[f"neighbors {family}"] = "\n".join(
                sorted(
                    line
                    for line in self.run(node, "ip", family, "neigh").splitlines()
                    if "PERMANENT" in line
                )
            )
        return state


def place_of(pod: Netns, container: str, **more: Any) -> Attachment:
    """Return eth0 of a container whose namespace is ``pod``."""
    return Attachment(container, str(pod.path), **more)


def addresses(result: Mapping[str, Any]) -> dict[Family, IPAddress]:
    """Return the addresses in an ADD's result."""
    found = [ip_interface(ip["address"]).ip for ip in result["ips"]]
    return {family_of(address): address for address in found}


def meets(
    client: str, server: str, target: IPAddress, port: int = PORT, *, listens: int = PORT
) -> str | None:
    """Return the address with which ``client`` is seen in ``server``, None when it is not.

    Both are names of namespaces; the server waits at its port ``listens``.
    """
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    with (
        netns.inside(server, lambda: socket.create_server(("", listens), family=family)) as waiting,
        netns.inside(client, lambda: socket.socket(family, socket.SOCK_STREAM)) as asking,
    ):
        asking.settimeout(CONNECT_S)
        try:
            asking.connect((str(target), port))
        except OSError:
            return None
        waiting.settimeout(CONNECT_S)
        answer, (source, *_) = waiting.accept()
        answer.close()
        return str(source)


def lab_of_two() -> Any:
    """Return a context with a lab of two nodes, dual-stack."""
    options = LabOptions(name=f"t-{uuid4().hex[:8]}", nodes=2, pods=0, families=FAMILIES)
    return running(options)
