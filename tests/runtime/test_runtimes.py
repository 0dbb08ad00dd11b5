"""Containers of real runtimes, one on each of two nodes: they meet, and leave nothing behind."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from overlay.lab import agents, processes
from overlay.lab.fabric import running, silent
from overlay.lab.topology import LabOptions
from overlay.model.address import FAMILIES, IPAddress
from overlay_cni.install import install_plugin, install_shim, own_interpreter
from tests.kernel.netns import eventually, host_unchanged
from tests.runtime.image import PAGE, PORT, write_image
from tests.runtime.machine import Machine, remove_cgroups
from tests.runtime.runtimes import CONFLISTS, DAEMON, REFERENCE_PLUGINS, Containerd, Podman, Runtime
from tests.unit.cni_plugins import build

pytestmark = pytest.mark.runtime

NODES: Final = ("n1", "n2")
FORMS: Final = ("python", "shim")


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
            shutil.copy(REFERENCE_PLUGINS / "portmap", machine.plugins)
            for old in machine.networks.iterdir():
                old.unlink()
            if conflist:
                shutil.copy(CONFLISTS / conflist, machine.networks)

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with host_unchanged(), ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("runtime"), stack)


@pytest.fixture(scope="module")
def podmen(site: Site) -> dict[str, Podman]:
    version = site.machines["n1"].run("podman", "--version").split()[-1]
    if int(version.split(".")[0]) > 4:
        pytest.skip(f"podman {version} has no CNI; its last versions with it are 4.x")
    site.install("python")
    return {n: Podman(site.machines[n], site.image, site.cgroup(n)) for n in NODES}


@pytest.fixture(scope="module")
def containerds(site: Site) -> Iterator[dict[str, Containerd]]:
    found = {n: Containerd(site.machines[n], site.image, site.cgroup(n)) for n in NODES}
    yield found
    for containerd in found.values():
        containerd.close()


def addresses(runtime: Runtime, container: str) -> list[IPAddress]:
    """Return the addresses of a container's eth0, as it sees them."""
    words = runtime.execute(container, "ip", "-o", "addr", "show", "dev", "eth0").split()
    given = [words[at + 1] for at, word in enumerate(words) if word in {"inet", "inet6"}]
    found = [ip_address(text.split("/")[0]) for text in given]
    return [address for address in found if not address.is_link_local]


def ask(runtime: Runtime, container: str, target: IPAddress, port: int = PORT) -> IPAddress:
    """Return the address that a container is seen with by the one at ``target``."""
    # Not wget: Debian's static one crashes without the host's name service.
    words = f"printf 'GET /{PAGE} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {target} {port}"
    answer = runtime.execute(container, "sh", "-c", words)
    seen = ip_address(answer.rpartition("\n")[2].strip("[]"))
    mapped = seen.ipv4_mapped if isinstance(seen, IPv6Address) else None
    return mapped or seen


def nothing_is_left(site: Site, node: str) -> None:
    eventually(lambda: site.left(node) == [], what=f"{node} without {site.left(node)}")


def meet(site: Site, first: Runtime, second: Runtime) -> None:
    """Start a container on each node, let each ask the other, stop both; nothing is left."""
    runtimes = dict(zip(NODES, (first, second), strict=True))
    for node, runtime in runtimes.items():
        runtime.start(f"on-{node}")
    own = {node: addresses(runtime, f"on-{node}") for node, runtime in runtimes.items()}
    assert {len(found) for found in own.values()} == {2}, own
    for node in NODES:
        (attachment,) = site.attachments(node)
        assert sorted(attachment["addresses"]) == sorted(map(str, own[node]))
    before = {node: site.tunneled(node) for node in NODES}
    for here, there in (NODES, NODES[::-1]):
        for mine, theirs in zip(own[here], own[there], strict=True):
            assert ask(runtimes[here], f"on-{here}", theirs) == mine
    assert all(site.tunneled(node) > before[node] for node in NODES)
    for node, runtime in runtimes.items():
        runtime.stop(f"on-{node}")
    for node, runtime in runtimes.items():
        assert runtime.left() == []
        nothing_is_left(site, node)
        assert "CNI " not in site.lab.dir.log(node).read_text(), "the agent refused nothing"


@pytest.mark.parametrize("form", FORMS)
def test_containers_of_podman_meet(site: Site, podmen: dict[str, Podman], form: str) -> None:
    site.install(form)
    meet(site, podmen["n1"], podmen["n2"])


@pytest.mark.parametrize(
    ("form", "conflist"), [("python", "containerd.conflist"), ("shim", "10-overlay.conflist")]
)
def test_containers_of_containerd_meet(
    site: Site, containerds: dict[str, Containerd], form: str, conflist: str
) -> None:
    site.install(form, conflist)
    meet(site, containerds["n1"], containerds["n2"])


def test_containers_of_two_runtimes_meet(
    site: Site, podmen: dict[str, Podman], containerds: dict[str, Containerd]
) -> None:
    site.install("shim", "containerd.conflist")
    meet(site, podmen["n1"], containerds["n2"])


def test_port_of_a_container_is_reached_at_its_node(site: Site, podmen: dict[str, Podman]) -> None:
    """The chain of the shipped configuration: the ports are the reference portmap's."""
    site.install("shim")
    here, there = podmen["n1"], podmen["n2"]
    here.start("server", "--publish", f"8081:{PORT}")
    there.start("client")
    clients = addresses(there, "client")
    for family in FAMILIES:
        target = site.lab.topology.nodes[0].address(family)
        assert ask(there, "client", target, 8081) in clients
    here.stop("server")
    there.stop("client")
    for node in NODES:
        nothing_is_left(site, node)


def test_container_that_ends_while_the_agent_is_away(site: Site, podmen: dict[str, Podman]) -> None:
    """podman asks for DEL once only; the agent finds out by itself when it is back."""
    site.install("shim")
    podman, lab = podmen["n1"], site.lab
    podman.start("orphan")
    processes.stop([lab.agent("n1")])
    podman.stop("orphan")
    assert podman.left() == []
    assert len(site.attachments("n1")) == 1, "nobody was told"
    nodes = [lab.topology.nodes[0]]
    started = {"n1": agents.start(lab.topology, nodes[0], lab.dir)}
    agents.wait_ready(nodes, started, lab.dir, silent)
    nothing_is_left(site, "n1")
