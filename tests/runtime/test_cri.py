"""Pods of containerd's CRI, as a kubelet asks for them, on two nodes."""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final
from uuid import uuid4

import pytest

from overlay.model.address import FAMILIES
from tests.runtime.kubelet import Kubelet
from tests.runtime.recorder import Recorder
from tests.runtime.site import Site, ask, nothing_is_left

pytestmark = pytest.mark.runtime

NODES: Final = ("n1", "n2")


@pytest.fixture(scope="module")
def kubelets(site: Site) -> Iterator[dict[str, Kubelet]]:
    site.install("shim", "10-overlay.conflist")
    found = {n: Kubelet(site.machines[n], site.image, site.cgroup(n)) for n in NODES}
    for kubelet in found.values():
        kubelet.wait_for_network()
    yield found
    for kubelet in found.values():
        kubelet.close()


def test_pods_of_the_cri_meet_and_leave_nothing(site: Site, kubelets: dict[str, Kubelet]) -> None:
    pods, given = {}, {}
    for node, kubelet in kubelets.items():
        pods[node] = kubelet.run(f"web-{node}", uid := str(uuid4()), host_port=8081)
        (held,) = site.attachments(node)
        assert held["arguments"]["K8S_POD_NAME"] == f"web-{node}"
        assert held["arguments"]["K8S_POD_UID"] == uid
        given[node] = [ip_address(text) for text in kubelet.addresses(pods[node])]
        assert sorted(held["addresses"]) == sorted(map(str, given[node]))
        assert all(any(a in subnet for subnet in site.subnets(node)) for a in given[node])
    for here, there in (NODES, NODES[::-1]):
        for mine, theirs in zip(given[here], given[there], strict=True):
            assert ask(kubelets[here], pods[here], theirs) == mine
    first = site.lab.topology.nodes[0]
    for family in FAMILIES:
        own = [a for a in given["n2"] if a.version == family.value]
        assert ask(kubelets["n2"], pods["n2"], first.address(family), 8081) in own
        # A pod that asks for its own published port meets itself.
        ask(kubelets["n1"], pods["n1"], first.address(family), 8081)
    for node, kubelet in kubelets.items():
        kubelet.stop(pods[node])
        assert site.attachments(node) == []
        kubelet.remove(pods[node])
    for node, kubelet in kubelets.items():
        assert kubelet.pods() == []
        nothing_is_left(site, node)
        namespaces = site.machines[node].run("ls", "/run/netns").split()
        assert namespaces == []
        assert "CNI " not in site.lab.dir.log(node).read_text(), "the agent refused nothing"


def test_second_del_comes_without_a_namespace(site: Site, kubelets: dict[str, Kubelet]) -> None:
    """Stopping tears the network down, removing does it again: every kubelet's habit."""
    kubelet, recorder = kubelets["n1"], Recorder(site.machines["n1"])
    recorder.install()
    pod = kubelet.run("twice", str(uuid4()))
    kubelet.stop(pod)
    kubelet.remove(pod)
    (added, deleted, again) = recorder.calls()
    assert [added[0], deleted[0], again[0]] == ["ADD", "DEL", "DEL"]
    assert added[2].startswith("/var/run/netns/cni-")
    assert deleted[2] == added[2]
    assert again == ["DEL", pod, "-", "eth0"]
    assert "CNI " not in site.lab.dir.log("n1").read_text()
    nothing_is_left(site, "n1")
