"""The image on two nodes, as the DaemonSet of the manifests runs it, and pods of the CRI.

The tests stand in the order of a node's life: waiting, ready, replaced, reset.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from overlay.lab.chaos.stream import End, Stream
from overlay.model.address import IPAddress
from tests.kernel.netns import eventually, host_unchanged
from tests.manifests.renderers import kubectl
from tests.runtime.daemonset import ManifestPod
from tests.runtime.kube_site import NODES, REFERENCE, KubeSite
from tests.runtime.machine import BIN_DIR, CONFIG_DIR
from tests.runtime.podspec import mebibytes
from tests.runtime.site import ask

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(900)]

CONFLIST: Final = f"{CONFIG_DIR}/10-overlay.conflist"
LATE_S: Final = 30.0
_CAPABILITIES: Final = {"NET_ADMIN": 12, "NET_RAW": 13}  # linux/capability.h
_FILTERED: Final = 2  # SECCOMP_MODE_FILTER


class Running:
    """What runs on the nodes: the agents' pods, and one pod of the CRI on each."""

    def __init__(self, site: KubeSite) -> None:
        self.site = site
        self.before = {number: site.snapshot(number) for number in NODES}
        self.agents: dict[int, ManifestPod] = {}
        self.pods: dict[int, str] = {}

    def address(self, number: int) -> IPAddress:
        return ip_address(self.site.kubelets[number].addresses(self.pods[number])[0])

    def meet(self) -> None:
        """Assert that each pod is answered by the other, and seen with its own address."""
        for here, there in (NODES, NODES[::-1]):
            kubelet, target = self.site.kubelets[here], self.address(there)
            assert ask(kubelet, self.pods[here], target) == self.address(here)

    def stream(self) -> Stream:
        """Return 1,000 packets a second between the pods, each way."""
        ends = []
        for number in NODES:
            inside = self.site.kubelets[number].namespace(self.pods[number])
            path = self.site.machines[number].path(inside)
            ends.append(End(str(path), str(self.address(number))))
        return Stream(*ends)


@pytest.fixture(scope="module")
def waiting(fabric_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Return agents on nodes that have no podCIDR yet."""
    if kubectl() is None:
        pytest.skip("needs the command kubectl, to render the manifests")
    with host_unchanged(), ExitStack() as stack:
        site = KubeSite(tmp_path_factory.mktemp("kube-site"), fabric_image, stack)
        running = Running(site)
        for number in NODES:
            site.hub.register_bare(number)
            running.agents[number] = site.agent(number)
            running.agents[number].start()
        yield running


@pytest.fixture(scope="module")
def running(waiting: Running) -> Running:
    """Return ready agents, and a pod on each node."""
    for number in NODES:
        waiting.site.hub.complete(number)
    for number, agent in waiting.agents.items():
        agent.wait_ready()
        kubelet = waiting.site.kubelets[number]
        kubelet.wait_for_network()
        waiting.pods[number] = kubelet.run(f"web{number}", str(uuid4()))
    return waiting


def test_runtime_is_told_of_the_network_once_the_agent_is_ready(waiting: Running) -> None:
    site = waiting.site
    for number, agent in waiting.agents.items():
        eventually(lambda a=agent: a.probe("startup"), timeout_s=LATE_S)  # type: ignore[misc]  # a default
        eventually(lambda a=agent: "has no podCIDR yet" in a.get("/readyz")[1], timeout_s=LATE_S)  # type: ignore[misc]  # a default
        assert agent.probe("liveness")
        assert not agent.probe("readiness")
        plugin = f"{BIN_DIR}/overlay"
        digests = agent.execute("sha256sum", "/usr/lib/overlay/overlay", plugin).output.split()
        assert digests[0] == digests[2]
        # Nothing of the host is on its PATH.
        alone = ("env", "-i", "CNI_COMMAND=VERSION", plugin)
        assert "supportedVersions" in site.machines[number].run(*alone)
        assert site.listing(number, CONFIG_DIR) == []
        assert not site.kubelets[number].has_network()
    assert site.listing(1, BIN_DIR) == sorted(["overlay", *REFERENCE])


def test_pods_meet(running: Running) -> None:
    for number in NODES:
        network = json.loads(running.site.machines[number].path(CONFLIST).read_text())
        assert [plugin["type"] for plugin in network["plugins"]] == ["overlay", "portmap"]
        assert running.address(number) in ip_network(f"10.244.{number}.0/24")
        eventually(lambda n=number: running.site.condition(n), timeout_s=LATE_S)  # type: ignore[misc]  # a default
        condition = running.site.condition(number)
        assert condition is not None
        assert condition["status"] == "False"
    running.meet()


def test_container_has_what_its_manifest_says(running: Running) -> None:
    (told,) = running.site.daemon["containers"]
    status = running.agents[1].process_status()
    added = told["securityContext"]["capabilities"]["add"]
    expected = sum(1 << _CAPABILITIES[name] for name in added)
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert int(status[kind], 16) == expected, kind
    assert int(status["NoNewPrivs"]) == 1
    assert int(status["Seccomp"]) == _FILTERED
    limit = mebibytes(told["resources"]["limits"]["memory"]) << 20
    assert running.agents[1].cgroup().memory_limit() == limit
    for path in ("/etc/written", "/opt/overlay/written", "/proc/sys/net/ipv4/ip_forward"):
        done = running.agents[1].execute("sh", "-c", f"echo 1 > {path}")
        assert "Read-only file system" in done.output, path


def test_overlayctl_in_the_container_asks_the_same_store(running: Running) -> None:
    agent = running.agents[1]
    doctor = agent.execute("overlayctl", "doctor")
    assert doctor.status == 0, doctor.output
    assert "0 findings" in doctor.output
    leases = json.loads(agent.execute("overlayctl", "leases", "-o", "json").output)["leases"]
    assert {lease["node"] for lease in leases} == {"n1", "n2"}


def test_agents_are_replaced_without_a_lost_packet(running: Running) -> None:
    """One after the other, each once the one before is ready: as the DaemonSet's rollout."""
    with running.stream() as stream:
        since = stream.mark()
        for number in NODES:
            said = running.agents[number].stop()
            assert said.status == 0, said.output
            running.agents[number] = running.site.agent(number)
            running.agents[number].start()
            running.agents[number].wait_ready()
        until = stream.mark()
        assert all(b - a > 1000 for a, b in zip(since.numbers, until.numbers, strict=True))
        assert stream.lost(since, until).on_the_way == 0
    running.meet()


def test_api_server_that_is_away_fails_no_probe(running: Running) -> None:
    agent, hub = running.agents[1], running.site.hub
    hub.stop_api()
    eventually(lambda: not json.loads(agent.get("/readyz")[1])["store_connected"], timeout_s=LATE_S)
    assert [agent.probe(name) for name in ("startup", "readiness", "liveness")] == [True] * 3
    # Nor does an agent that starts meanwhile end, or take anything from its pods.
    with running.stream() as stream:
        since = stream.mark()
        assert agent.stop().status == 0
        running.agents[1] = agent = running.site.agent(1)
        agent.start()
        eventually(lambda: agent.probe("startup"), timeout_s=LATE_S, what=agent.log())
        assert agent.probe("liveness")
        assert running.site.machines[1].path(CONFLIST).exists()
        hub.start_api()
        agent.wait_ready()
        assert stream.lost(since, stream.mark()).on_the_way == 0


def test_stuck_process_fails_its_liveness_alone(running: Running) -> None:
    agent = running.agents[1]
    with running.stream() as stream:
        since = stream.mark()
        agent.signal("STOP")
        try:
            assert not agent.probe("liveness")
        finally:
            agent.signal("CONT")
        eventually(lambda: agent.probe("liveness"), timeout_s=LATE_S)
        assert stream.lost(since, stream.mark()).on_the_way == 0


def test_reset_job_leaves_the_host_as_it_was(running: Running) -> None:
    site = running.site
    (told,) = site.job["containers"]
    early = site.pod(1, site.job)
    early.prepare()
    refused = early.run(told)
    assert refused.status != 0
    assert "stop it first" in refused.output
    early.remove()
    running.meet()
    # In the order of docs/kubernetes.md: drained, excluded, reset, its lease released.
    site.kubelets[1].stop(running.pods[1])
    site.kubelets[1].remove(running.pods[1])
    running.agents[1].stop()
    job = site.pod(1, site.job)
    job.prepare()
    done = job.run(told)
    assert done.status == 0, done.output
    job.remove()
    assert site.snapshot(1) == running.before[1]
    released = running.agents[2].execute("overlayctl", "leases", "release", "n1")
    assert released.status == 0, released.output
    assert site.hub.found(1)["metadata"]["annotations"] == {}
    routes = site.hub.host(2).netns
    eventually(lambda: "10.244.1.0/24" not in routes.ip("route"), timeout_s=LATE_S)
