"""``overlayctl events`` of the real agent: what was done to a node, and why, stands there."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import overlay_cni.plugin
from tests.e2e.agents import BIN, RunningAgent, World
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
PEER = "subnets/10.244.77.0-24"
MAC, OTHER_MAC = "c6:1d:62:0e:11:22", "c6:1d:62:0e:11:33"
PLUGIN = [sys.executable, "-ISE", overlay_cni.plugin.__file__]


def peer(mac: str) -> str:
    owner = {"NodeID": "far-id", "NodeName": "far"}
    data = {"VNI": 1, "VtepMAC": mac}
    value = {"PublicIP": "192.0.2.2", "BackendType": "vxlan", "BackendData": data}
    return json.dumps({**value, "Overlay": owner})


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, list[RunningAgent]]]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        world = World(make, tmp_path_factory.mktemp("events"))
        world.start_etcd()
        world.put("config", CONFIG)
        world.put(PEER, peer(MAC))
        agents = [world.agent()]
        agents[0].wait_ready()
        yield world, agents
        world.close()
        for netns in made:
            netns.close()


def events(world: World, *words: str) -> list[dict[str, Any]]:
    lines = world.overlayctl("events", "-o", "json", *words).splitlines()
    return [json.loads(line) for line in lines]


def texts(world: World, kind: str) -> str:
    return "\n".join(event["text"] for event in events(world, "--kind", kind))


def wait_for(world: World, kind: str, text: str) -> None:
    """Wait until an event of ``kind`` says ``text``."""
    found: Callable[[], bool] = lambda: text in texts(world, kind)  # noqa: E731 - named by eventually
    eventually(found, timeout_s=20, what=f"{kind} with {text!r} among {texts(world, kind)!r}")


def plugin(world: World, command: str, pod: Netns, container: str) -> int:
    """Execute the plugin as a runtime does; return its exit status."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": str(pod.path),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart",
        "CNI_PATH": "/opt/cni/bin",
        "PATH": os.environ["PATH"],
    }
    config = {"cniVersion": "1.0.0", "name": "fabric", "type": "overlay"}
    text = json.dumps({**config, "socket": str(world.place / "state" / "cni.sock")}).encode()
    done = world.node.call(
        lambda: subprocess.run(
            PLUGIN, input=text, env=environment, capture_output=True, check=False, timeout=60
        )
    )
    return done.returncode


Fabric = tuple[World, list[RunningAgent]]


def test_start_names_lease_and_peers(fabric: Fabric) -> None:
    world, _ = fabric
    wait_for(world, "peer-added", "far")
    assert "on node here" in texts(world, "agent-started")
    assert "leased 10.244." in texts(world, "lease-claimed")
    assert "1 peers, subnet 10.244." in texts(world, "agent-ready")
    numbers = [event["number"] for event in events(world)]
    assert numbers == sorted(set(numbers))


def test_peer_that_changes_goes_and_comes_is_named(fabric: Fabric) -> None:
    world, _ = fabric
    world.put(PEER, peer(OTHER_MAC))
    wait_for(
        world, "peer-changed", "far with 10.244.77.0/24 at 192.0.2.2 changed: backend data was"
    )
    world.delete(PEER)
    wait_for(world, "peer-removed", "far with 10.244.77.0/24 at 192.0.2.2 went")
    world.put(PEER, peer(MAC))
    wait_for(world, "peer-added", "far with 10.244.77.0/24 at 192.0.2.2 came")


def test_drift_is_named_with_who_made_it(fabric: Fabric) -> None:
    world, _ = fabric
    world.node.ip("route", "del", "10.244.77.0/24")
    wait_for(world, "drift", "10.244.77.0/24")
    found = events(world, "--kind", "drift-repaired")[-1]
    assert any("10.244.77.0/24" in item for item in found["facts"]["objects"])
    assert ", probably " in found["text"], "who made it, as far as the kernel tells"


def test_pod_is_attached_refused_and_detached(fabric: Fabric) -> None:
    world, _ = fabric
    pod = Netns()
    try:
        assert plugin(world, "ADD", pod, "basket") == 0
        wait_for(world, "pod-attached", "pod shop/cart (container basket) 10.244.")
        assert plugin(world, "ADD", pod, "basket") == 1
        wait_for(world, "pod-refused", "ADD of eth0 of container basket")
        assert plugin(world, "DEL", pod, "basket") == 0
        wait_for(world, "pod-detached", "is detached: the runtime says so")
        before = len(events(world, "--kind", "pod-detached"))
        assert plugin(world, "DEL", pod, "basket") == 0  # there is nothing to be told of
        assert plugin(world, "ADD", pod, "last") == 0
        wait_for(world, "pod-attached", "container last")
        assert plugin(world, "DEL", pod, "last") == 0
        wait_for(world, "pod-detached", "container last")
        assert len(events(world, "--kind", "pod-detached")) == before + 1
    finally:
        pod.close()


def test_config_that_changes_and_one_that_is_refused(fabric: Fabric) -> None:
    world, _ = fabric
    world.put("config", CONFIG[:-1] + ', "Egress": {"Mode": "flat"}}')
    wait_for(world, "config-changed", '"Mode": "flat"')
    world.put("config", CONFIG[:-1] + ', "Egres": {}}')
    wait_for(world, "config-refused", "Egres")
    world.put("config", CONFIG)
    wait_for(world, "config-changed", '"Mode": "island"')


def test_own_lease_that_is_deleted_is_told_as_lost_and_claimed(fabric: Fabric) -> None:
    world, _ = fabric
    own = next(key for key in world.leases() if key != PEER.removeprefix("subnets/"))
    world.delete(f"subnets/{own}")
    wait_for(world, "lease-lost", own.replace("-", "/"))
    eventually(
        lambda: len(events(world, "--kind", "lease-claimed")) == 2,
        timeout_s=20,
        what="a second claim",
    )


def test_follower_sees_the_store_go_and_come_back_and_outlives_the_agent(fabric: Fabric) -> None:
    world, agents = fabric
    socket = f"--socket={world.place / 'state' / 'cni.sock'}"
    command = [str(BIN / "overlayctl"), socket, "events", "--follow", "--since", "1s"]
    told = world.place / "followed"
    with told.open("wb") as file:
        follower = world.node.call(lambda: subprocess.Popen(command, stdout=file, stderr=file))
    try:
        world.etcd.stop()
        eventually(lambda: "store-lost" in told.read_text(), timeout_s=30, what="store-lost")
        world.start_etcd()
        eventually(lambda: "store-back" in told.read_text(), timeout_s=30, what="store-back")

        last = events(world)[-1]["number"]
        agents[-1].process.kill()
        agents[-1].process.wait(10)
        eventually(lambda: "waiting for it" in told.read_text(), timeout_s=20, what="patience")
        agents.append(world.agent())
        agents[-1].wait_ready()
        eventually(lambda: "agent-started" in told.read_text(), timeout_s=20, what="the restart")
        kept = events(world)
        assert last in [event["number"] for event in kept]
        assert kept[0]["kind"] == "agent-started"
        started = [event for event in kept if event["kind"] == "agent-started"]
        assert len(started) == 2
        assert started[1]["number"] > last
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 0


def test_what_an_ended_agent_did_is_read_from_its_files(fabric: Fabric) -> None:
    world, agents = fabric
    state = world.place / "state"
    assert agents[-1].terminate() == 0
    found = [json.loads(line) for line in world.overlayctl(
        "events", "-o", "json", f"--state-dir={state}"
    ).splitlines()]  # fmt: skip
    assert found[-1]["kind"] == "agent-stopping"
    assert (state / "events.jsonl").stat().st_mode & 0o777 == 0o600

    with (state / "events.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{{{\n{"number": "x"}\n{"number": 7, "time"')
    agents.append(world.agent())
    agents[-1].wait_ready()
    assert found[-1] in events(world)
    eventually(
        lambda: sum(e["kind"] == "agent-started" for e in events(world)) == 3,
        timeout_s=20,
        what="the third start",
    )
    assert "3 lines of earlier events cannot be read" in agents[-1].log
    eventually(
        lambda: (
            "agent-ready" in (state / "events.jsonl").read_text(errors="replace").split("{{{")[1]
        ),
        timeout_s=20,
        what="lines after the damage",
    )
    last = (state / "events.jsonl").read_bytes().splitlines()[-1]
    assert json.loads(last)["number"] > found[-1]["number"]
