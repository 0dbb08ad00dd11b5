"""The way of a packet under every backend and egress mode, and on a node's bridge."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from overlay.lab.fabric import running
from overlay.lab.faults.fault import SUBJECT
from overlay.lab.pods import plugin_command
from overlay.lab.topology import LabOptions
from overlay.model.egress import EgressMode
from tests.e2e.ways import Scene
from tests.kernel.netns import Netns, host_unchanged

pytestmark = pytest.mark.e2e


@contextmanager
def scene_of(**options: Any) -> Iterator[Scene]:
    whole = LabOptions(name=f"t-{uuid4().hex[:8]}", nodes=2, pods=1, **options)
    with host_unchanged(), running(whole) as lab:
        yield Scene(lab)


@pytest.mark.parametrize(
    "options", [{"backend": "host-gw"}, {"direct_routing": True}], ids=["host-gw", "DirectRouting"]
)
def test_peers_are_reached_directly(options: dict[str, Any]) -> None:
    with scene_of(**options) as scene:
        for asked in ("{pod1} {pod2} --live", "{pod2} {pod1}", "{pod1} {public2} --live"):
            done = scene.ask(f"explain {asked}")
            assert done.returncode == 0, done.stdout
        direct = scene.ask("explain {pod1} {pod2}").stdout
        assert scene.filled("{net2} via {public2} dev eth0") in direct


def test_isolation_is_named_with_its_rule() -> None:
    with scene_of(egress=EgressMode.ISOLATED) as scene:
        assert scene.ask("explain {pod1} {pod2} --live").returncode == 0
        out = scene.ask("explain {pod1} 198.51.100.1 --live")
        assert 'comment "a pod to the outside"' in out.stdout
        assert "counted meanwhile: 1 by inet overlay ov_from_pod" in out.stdout
        assert "ICMP echo: refused: an ICMP error came by" in out.stdout
        assert out.returncode == 1
        into = scene.ask("explain 198.51.100.1 {pod1}")
        assert 'comment "the outside to a pod"' in into.stdout
        assert into.returncode == 1


def test_pods_of_a_bridge_are_explained() -> None:
    with scene_of() as scene:
        pods = [Netns(), Netns()]
        try:
            for number, pod in enumerate(pods):
                attach(scene, pod, f"bridged{number}", "ADD")
            for asked in ("bridged0 bridged1", "bridged0 {pod1}", "{pod1} bridged1",
                          "bridged0 {pod2}", "bridged1 {public2}"):  # fmt: skip
                done = scene.ask(f"explain {asked} --live")
                assert done.returncode == 0, done.stdout
                assert "answered after" in done.stdout
            one_link = scene.ask("explain bridged0 bridged1").stdout
            assert "opod-bridge carries it to opod" in one_link
            pods[0].ip("route", "del", "default")
            lost = scene.ask("explain bridged0 {pod2}").stdout
            assert "the pod has no route to" in lost
            mend = next(x for x in lost.splitlines() if x.startswith("mend  "))
            scene.run(SUBJECT, *mend.split()[1:])
            assert scene.ask("explain bridged0 {pod2} --live").returncode == 0
        finally:
            for number, pod in enumerate(pods):
                attach(scene, pod, f"bridged{number}", "DEL")
                pod.close()


def attach(scene: Scene, pod: Netns, container: str, command: str) -> None:
    socket = str(scene.lab.dir.node(SUBJECT) / "cni.sock")
    config = {"cniVersion": "1.1.0", "name": "lab", "type": "overlay", "mode": "bridge"}
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": str(pod.path),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    done = subprocess.run(
        plugin_command(),
        input=json.dumps({**config, "socket": socket}),
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
