"""``overlayctl ipam`` against namespaces that live and that went, wired by us and by others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import overlay_cni.plugin
from tests.e2e.agents import World
from tests.kernel.netns import Netns, host_unchanged

pytestmark = pytest.mark.e2e

PLUGIN = [sys.executable, "-ISE", overlay_cni.plugin.__file__]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        world = World(make, tmp_path_factory.mktemp("ipam"))
        world.start_etcd()
        world.put("config", '{"Network": "10.244.0.0/16"}')
        world.agent().wait_ready()
        yield world
        world.close()
        for netns in made:
            netns.close()


def add(world: World, pod: Netns, container: str, **extra: Any) -> None:
    """Execute the plugin as a runtime does."""
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": container,
        "CNI_NETNS": str(pod.path),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "PATH": os.environ["PATH"],
    }
    config = {"cniVersion": "1.0.0", "name": "fabric", "type": "overlay", **extra}
    text = json.dumps({**config, "socket": str(world.place / "state" / "cni.sock")}).encode()
    done = world.node.call(
        lambda: subprocess.run(
            PLUGIN, input=text, env=environment, capture_output=True, check=False, timeout=60
        )
    )
    assert done.returncode == 0, done.stdout


DELEGATED = {"type": "bridge", "ipam": {"type": "overlay"}}


@pytest.mark.parametrize("extra", [{}, DELEGATED], ids=["wired by us", "wired by another plugin"])
def test_address_is_a_leak_once_its_namespace_went(world: World, extra: dict[str, Any]) -> None:
    stays, goes = Netns(), Netns()
    try:
        add(world, stays, "stays", **extra)
        add(world, goes, "goes", **extra)
        assert world.overlayctl("ipam", "check") == "in step\n"
        goes.close()
        (finding,) = world.overlayctl("ipam", "check", check=False).splitlines()
        assert "container goes" in finding
        assert "overlayctl ipam release goes" in finding
        held = json.loads(world.overlayctl("ipam", "list", "-o", "json"))
        assert sorted(a["container"] for a in held["attachments"]) == ["goes", "stays"]

        assert "released 10.244." in world.overlayctl("ipam", "release", "goes")
        assert world.overlayctl("ipam", "check") == "in step\n"
        assert "released 10.244." in world.overlayctl("ipam", "release", "stays")
        assert json.loads(world.overlayctl("ipam", "list", "-o", "json"))["attachments"] == []
    finally:
        stays.close()
        goes.close()


def test_namespace_whose_mount_went_and_file_stayed_is_gone(world: World) -> None:
    """What `umount` leaves of a namespace's file is an empty file."""
    pod = Netns()
    add(world, pod, "umounted", **DELEGATED)
    pod.close()
    pod.path.touch()
    try:
        finding = world.overlayctl("ipam", "check", check=False)
        assert f"{pod.path}, the namespace of container umounted, is gone" in finding
        world.overlayctl("ipam", "release", "umounted")
    finally:
        pod.path.unlink()
