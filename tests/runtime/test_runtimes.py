"""Containers of real runtimes, one on each of two nodes: they meet, and leave nothing behind."""

from collections.abc import Iterator
from typing import Final

import pytest

from overlay.lab import agents, processes
from overlay.lab.fabric import silent
from overlay.model.address import FAMILIES
from tests.runtime.image import PORT
from tests.runtime.runtimes import Containerd, Podman, Runtime
from tests.runtime.site import Site, addresses, ask, nothing_is_left

pytestmark = pytest.mark.runtime

NODES: Final = ("n1", "n2")
FORMS: Final = ("python", "shim")


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
