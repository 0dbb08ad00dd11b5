"""The agent dies while a runtime asks, or is not there: it is told so, and nothing stays behind."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final
from uuid import uuid4

import grpc
import pytest

from overlay.lab import agents, processes
from overlay.lab.fabric import silent
from tests.e2e.chains import Chain
from tests.runtime.kubelet import Kubelet
from tests.runtime.recorder import Recorder
from tests.runtime.runtimes import Containerd, Podman
from tests.runtime.site import Site, nothing_is_left

pytestmark = pytest.mark.runtime

NODE: Final = "n1"
OTHER: Final = "n2"  # of two containerds each has a machine of its own
ROUNDS: Final = 8
LATEST_S: Final = 0.015  # after ADD began: by then it has ended, too
AWAY: Final = "see whether overlayd runs on this node; the runtime may ask again"


class Agent:
    """The agent of one node, which is killed and started again."""

    def __init__(self, site: Site, node: str) -> None:
        self._lab, self._process = site.lab, site.lab.agent(node)
        (self._host,) = (host for host in site.lab.topology.nodes if host.name == node)

    def kill(self) -> None:
        """End it at once, with nothing tidied up."""
        os.kill(self._process.pid, signal.SIGKILL)
        processes.stop([self._process])

    def start(self) -> None:
        """Start it and wait until it is ready."""
        started = agents.start(self._lab.topology, self._host, self._lab.dir)
        self._process = started
        agents.wait_ready([self._host], {self._host.name: started}, self._lab.dir, silent)


@pytest.fixture(scope="module")
def agent(site: Site) -> Agent:
    site.install("shim", "10-overlay.conflist")
    return Agent(site, NODE)


@pytest.fixture(scope="module")
def recorder(site: Site, agent: Agent) -> Recorder:
    del agent  # the plugin is installed first
    recorder = Recorder(site.machines[NODE])
    recorder.install()
    return recorder


@pytest.fixture(scope="module")
def kubelet(site: Site, recorder: Recorder) -> Iterator[Kubelet]:
    del recorder  # stands before the plugin by then
    kubelet = Kubelet(site.machines[NODE], site.image, site.cgroup(NODE))
    kubelet.wait_for_network()
    yield kubelet
    kubelet.close()


def killed_in_add(agent: Agent, recorder: Recorder, start: Callable[[], object]) -> str:
    """Kill the agent at some moment of an ADD; return what the runtime complains, if it does."""
    number = recorder.count("ADD") + 1
    with ThreadPoolExecutor(max_workers=1) as pool:
        asked = pool.submit(start)
        recorder.wait_for("ADD", number)
        threading.Event().wait(random.uniform(0, LATEST_S))
        agent.kill()
        agent.start()
        try:
            asked.result()
        except (AssertionError, grpc.RpcError) as exc:
            return str(exc)
    return ""


def ruleset(site: Site) -> str:
    return site.machines[NODE].run("nft", "--stateless", "list", "ruleset")


def is_told(complaints: list[str]) -> None:
    """Assert that whoever complains does so because the agent was away."""
    assert all(AWAY in text or text == "" for text in complaints), complaints


def test_podman_run_while_the_agent_is_killed(site: Site, agent: Agent, recorder: Recorder) -> None:
    podman = Podman(site.machines[NODE], site.image, site.cgroup(NODE))
    before = ruleset(site)
    complaints = []
    for number in range(ROUNDS):
        name = f"cut{number}"
        complaints.append(killed_in_add(agent, recorder, partial(podman.start, name)))
        podman.discard(name)
        nothing_is_left(site, NODE)
    assert podman.left() == []
    is_told(complaints)
    assert ruleset(site) == before


def test_pod_of_the_cri_while_the_agent_is_killed(
    site: Site, agent: Agent, recorder: Recorder, kubelet: Kubelet
) -> None:
    before = ruleset(site)
    complaints = []
    for number in range(ROUNDS):
        name = f"cut{number}"
        complaints.append(killed_in_add(agent, recorder, partial(kubelet.run, name, str(uuid4()))))
        for pod in kubelet.pods():
            kubelet.stop(pod)
            kubelet.remove(pod)
        nothing_is_left(site, NODE)
    is_told(complaints)
    assert ruleset(site) == before


def test_collection_after_ctr_while_the_agent_is_killed(site: Site, agent: Agent) -> None:
    """ctr asks for no DEL when its ADD failed; so this is for GC to find."""
    del agent  # installs the plugin on both nodes
    machine, there = site.machines[OTHER], Agent(site, OTHER)
    recorder = Recorder(machine)
    recorder.install()
    plugin = {"type": "overlay", "socket": str(machine.state / "cni.sock")}
    network = {"cniVersion": "1.1.0", "name": "overlay", "plugins": [plugin]}
    collector = Chain(network, site.lab.topology.namespace_of(OTHER), (site.place / "shim",))
    containerd = Containerd(machine, site.image, site.cgroup(OTHER))
    complaints = []
    try:
        for number in range(ROUNDS):
            name = f"cut{number}"
            complaints.append(killed_in_add(there, recorder, partial(containerd.start, name)))
            end = containerd.discard if complaints[-1] else containerd.stop
            end(name)
            assert containerd.left() == []
            collector.collect([])
            nothing_is_left(site, OTHER)
        is_told(complaints)
    finally:
        containerd.close()


def test_cri_asks_again_until_the_agent_is_back(
    site: Site, agent: Agent, recorder: Recorder, kubelet: Kubelet
) -> None:
    recorder.install(timeout_ms=300)
    stays = kubelet.run("stays", str(uuid4()))
    agent.kill()
    with pytest.raises(grpc.RpcError, match=AWAY):
        kubelet.run("refused", str(uuid4()))
    for _ in range(2):
        with pytest.raises(grpc.RpcError, match=AWAY):
            kubelet.stop(stays)
    assert len(site.attachments(NODE)) == 1
    agent.start()
    for pod in {stays, *kubelet.pods()}:
        kubelet.stop(pod)
        kubelet.remove(pod)
    recorder.install()
    nothing_is_left(site, NODE)
