"""The real ``overlayd`` on a cluster's podCIDRs: pods, comings and goings, waiting, bad input."""

import json
import time
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import permutations
from pathlib import Path

import pytest

from tests.e2e.kube_hub import KubeHub
from tests.e2e.pair import meets
from tests.e2e.test_agent import reaches
from tests.kernel.netns import eventually, host_unchanged

pytestmark = pytest.mark.e2e

_LATE_S = 30.0


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[KubeHub]:
    with host_unchanged():
        made = KubeHub(tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_pods_of_three_nodes_meet_and_nodes_come_and_go(hub: KubeHub) -> None:
    for number in (1, 2, 3):
        hub.register(number)
    agents = [hub.start(number) for number in (1, 2, 3)]
    for agent in agents:
        agent.wait_ready()
    pods = [hub.host(number).add_pod(f"c{number}") for number in (1, 2, 3)]
    for number, (_, address) in zip((1, 2, 3), pods, strict=True):
        assert address.startswith(f"10.244.{number}.")
    hub.wait_for_routes(3)
    for (here, source), (there, target) in permutations(pods, 2):
        assert meets(here.name, there.name, ip_address(target)) == source
    for number in (1, 2, 3):
        eventually(lambda n=number: _is_available(hub, n), timeout_s=_LATE_S)  # type: ignore[misc]  # a default
    hub.register(4)
    fourth = hub.start(4)
    fourth.wait_ready()
    pod, address = hub.host(4).add_pod("c4")
    hub.wait_for_routes(4)
    assert meets(pods[0][0].name, pod.name, ip_address(address)) == pods[0][1]
    fourth.terminate()
    hub.unregister(4)
    eventually(
        lambda: "10.244.4.0/24" not in hub.host(1).netns.ip("route"),
        timeout_s=_LATE_S,
        what="the route to a node that was deleted is gone",
    )
    shown = json.loads(hub.overlayctl(1, "-o", "json", "leases"))["leases"]
    assert {lease["node"] for lease in shown} == {"n1", "n2", "n3"}
    assert "10.244.0.0/16" in hub.overlayctl(1, "network", "show")


def _is_available(hub: KubeHub, number: int) -> bool:
    conditions = hub.found(number)["status"]["conditions"]
    return any((c["type"], c.get("status")) == ("NetworkUnavailable", "False") for c in conditions)


def test_flannels_node_is_a_peer_both_ways(hub: KubeHub) -> None:
    hub.register(1)
    flannel = hub.add_flannel(2)
    hub.start(1).wait_ready()
    hub.teach_flannel(flannel, 1)
    eventually(lambda: "10.244.2.0/24" in hub.host(1).netns.ip("route"), timeout_s=_LATE_S)
    ours = hub.host(1).netns
    assert reaches(ours, "10.244.1.0", flannel.netns, "10.244.2.0")
    assert reaches(flannel.netns, "10.244.2.0", ours, "10.244.1.0")


def test_forwarding_goes_on_without_the_api_and_what_was_missed_is_made_up_for(
    hub: KubeHub,
) -> None:
    for number in (1, 2):
        hub.register(number)
    agents = [hub.start(number) for number in (1, 2)]
    for agent in agents:
        agent.wait_ready()
    hub.wait_for_routes(2)
    pods = [hub.host(number).add_pod(f"c{number}") for number in (1, 2)]
    hub.stop_api()
    eventually(
        lambda: not json.loads(agents[0].get("/readyz")[1])["store_connected"], timeout_s=_LATE_S
    )
    assert agents[0].get("/readyz")[0] == 200
    assert agents[0].get("/healthz")[0] == 200
    before = agents[0].cpu_s()
    time.sleep(3.0)  # time in which nothing happens is what this is about
    assert agents[0].cpu_s() - before < 1.0, "of the 3 s that a loop without a pause takes"
    assert meets(pods[0][0].name, pods[1][0].name, ip_address(pods[1][1])) == pods[0][1]
    hub.add_flannel(3)
    hub.start_api()
    hub.wait_for_routes(3, on=(1, 2))
    assert "the store answers again" in agents[0].log


def test_every_state_of_waiting_has_its_reason(hub: KubeHub) -> None:
    hub.config.unlink()
    agent = hub.start(1)
    reason = agent.wait_for_reason("waiting for a network config")
    assert str(hub.config) in " ".join(reason["reasons"])
    hub.config.write_text('{"Network": "10.244.0.0/16", "Backed": {}}')
    assert "Backed" in str(agent.wait_for_reason("network config invalid")["reasons"])
    hub.config.write_text('{"Network": "10.244.0.0/16"}')
    agent.wait_for_reason("there is no node n1 in Kubernetes yet")
    hub.register_bare(1)
    agent.wait_for_reason("node n1 has no podCIDR yet")
    hub.api.forbidden = {("patch", "nodes/status")}
    hub.complete(1)
    agent.wait_for_reason("may not patch nodes/status")
    hub.config.write_text('{"Network": "10.99.0.0/16"}')
    agent.wait_for_reason("podCIDR 10.244.1.0/24 of node n1 lies outside the network 10.99.0.0/16")
    hub.config.write_text('{"Network": "10.244.0.0/16"}')
    hub.api.forbidden = set()
    agent.wait_ready()
    hub.config.write_text('{"Network": "10.99.0.0/16"}')
    eventually(lambda: "stays in force" in agent.log, timeout_s=_LATE_S)
    assert agent.get("/readyz")[0] == 200
    assert agent.process.poll() is None


def test_garbage_in_a_peers_annotations_leaves_it_and_the_others(hub: KubeHub) -> None:
    hub.register(1)
    hub.add_flannel(2)
    hub.add_flannel(3)
    agent = hub.start(1)
    agent.wait_ready()
    hub.wait_for_routes(3, on=(1,))
    found = hub.found(2)
    notes = {**found["metadata"]["annotations"], "flannel.alpha.coreos.com/backend-data": "{"}
    meta = {**found["metadata"], "annotations": notes}
    hub.replace(2, {**found, "metadata": meta})
    eventually(lambda: "overlay_lease_keys_skipped 1.0" in agent.get("/metrics")[1])
    assert "node n2" in agent.log
    routes = hub.host(1).netns.ip("route")
    assert "10.244.2.0/24" in routes
    assert "10.244.3.0/24" in routes


def test_two_agents_on_one_node_name_each_other_and_the_second_waits(hub: KubeHub) -> None:
    hub.register(1)
    first = hub.start(1)
    first.wait_ready()
    before = hub.annotation(1, "public-ip")
    second = hub.host(2).start(*hub.flags(1))
    reason = " ".join(second.wait_for_reason("is alive and holds")["reasons"])
    for word in ("192.0.2.1", "192.0.2.2", "n1", "--node-name"):
        assert word in reason
    assert second.process.poll() is None, "no crash loop"
    assert hub.annotation(1, "public-ip") == before
    assert first.get("/readyz")[0] == 200
