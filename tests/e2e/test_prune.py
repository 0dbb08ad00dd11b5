"""Peers that vanish from a real etcd: one goes at once, many are held until somebody answers."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.agents import RunningAgent, World
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

# The node itself leases none of the peers' subnets.
CONFIG: Final = '{"Network": "10.244.0.0/16", "SubnetMin": "10.244.200.0"}'
PEERS: Final = range(10, 40)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        here = World(make, tmp_path)
        here.start_etcd()
        here.put("config", CONFIG)
        yield here
        here.close()
        for netns in made:
            netns.close()


def key(i: int) -> str:
    return f"subnets/10.244.{i}.0-24"


def put(world: World, i: int, at: int | None = None) -> None:
    """Write peer ``i``'s lease as flannel would, at its own subnet or at another's."""
    value = {
        "PublicIP": f"192.0.2.{i}",
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": f"c6:1d:62:0e:11:{i:02x}"},
    }
    world.put(key(i if at is None else at), json.dumps(value))


def start(world: World, *flags: str) -> RunningAgent:
    """Start an agent beside ``PEERS`` and return it when it sends to all of them."""
    for i in PEERS:
        put(world, i)
    agent = world.agent("--audit-interval=1h", *flags)
    agent.wait_ready()
    eventually(lambda: routes(world) == set(PEERS), timeout_s=20, what=agent.log)
    return agent


def routes(world: World) -> set[int]:
    """Return the numbers of the peers that packets go to, by route, neighbor and entry alike."""
    node = world.node
    shown = (
        node.ip("route", "show", "proto", "79"),
        node.ip("neigh", "show", "dev", "overlay.1", "nud", "permanent"),
        node.run("bridge", "fdb", "show", "dev", "overlay.1"),
    )
    patterns = (r"^10\.244\.(\d+)\.0/24 via", r"^10\.244\.(\d+)\.0 lladdr", r"dst 192\.0\.2\.(\d+)")
    found = [
        {int(n) for n in re.findall(pattern, text, re.MULTILINE)}
        for pattern, text in zip(patterns, shown, strict=True)
    ]
    assert found[0] == found[1] == found[2], shown
    return found[0]


def held(world: World) -> dict[str, float] | None:
    status = json.loads(world.overlayctl("-o", "json", "status", check=False))
    found: dict[str, float] | None = status["held"]
    return found


def wait_held(world: World, agent: RunningAgent, count: int) -> None:
    eventually(
        lambda: (held(world) or {}).get("peers") == count, timeout_s=20, what=agent.log[-3000:]
    )


def delete_all(world: World) -> None:
    """Do what ``etcdctl del --prefix`` would: the agent's own lease goes along."""
    world.delete_prefix("subnets/")


def test_released_peer_is_gone_at_once_and_is_not_held(world: World) -> None:
    agent = start(world)
    started = time.monotonic()
    world.overlayctl("leases", "release", "10.244.12.0/24")
    told = time.monotonic()
    eventually(lambda: try_routes(world) == set(PEERS) - {12}, timeout_s=20, what=agent.log)
    now = time.monotonic()
    print(f"gone {now - told:.3f} s after the command that took {told - started:.3f} s")
    assert held(world) is None
    world.overlayctl("leases", "release", "192.0.2.13")
    eventually(lambda: try_routes(world) == set(PEERS) - {12, 13}, timeout_s=20, what=agent.log)


def test_all_leases_deleted_at_once_traffic_goes_on_and_the_operator_is_asked(
    world: World,
) -> None:
    agent = start(world)
    delete_all(world)
    wait_held(world, agent, len(PEERS))
    assert routes(world) == set(PEERS)
    said = world.overlayctl("status", check=False)
    assert "`overlayctl peers prune` lets them go" in said
    rows = world.overlayctl("peers").splitlines()
    assert rows[0].endswith("HELD")
    assert sum(row.endswith("yes") for row in rows) == len(PEERS)
    assert "vanished from the store within a second" in agent.log
    metrics = agent.get("/metrics")[1]
    assert f"overlay_peers_held {len(PEERS)}.0" in metrics
    left = re.search(r"^overlay_peers_held_remaining_seconds (\S+)", metrics, re.MULTILINE)
    assert left is not None
    assert 0 < float(left[1]) <= 60
    assert "overlay_mass_deletions_total 1.0" in metrics
    assert agent.get("/readyz")[0] == 200, "traffic flows"
    eventually(world.leases, timeout_s=20, what="the node's own lease, claimed again")

    assert "30 peers" in world.overlayctl("peers", "prune")
    eventually(lambda: not try_routes(world), timeout_s=20, what=agent.log[-2000:])
    assert held(world) is None
    with pytest.raises(AssertionError, match="no peer is held back on this node"):
        world.overlayctl("peers", "prune")


def try_routes(world: World) -> set[int]:
    """Return the same, or {0} while half of a change is done."""
    try:
        return routes(world)
    except AssertionError:
        return {0}


def test_deletions_one_by_one_are_seen_as_one_and_end_with_the_delay(world: World) -> None:
    agent = start(world, "--prune-delay=3s", "--max-prune=12")
    for i in PEERS[:20]:
        world.delete(key(i))
    wait_held(world, agent, 20)
    assert routes(world) == set(PEERS), "the first ones came back"
    eventually(lambda: try_routes(world) == set(PEERS[20:]), timeout_s=20, what=agent.log[-2000:])
    eventually(lambda: "did not come back in time" in agent.log, what="a word in the log")
    assert agent.log.count("did not come back in time") == 1


def test_peers_that_come_back_are_never_touched_and_new_ones_wait_for_nobody(
    world: World, tmp_path: Path
) -> None:
    agent = start(world)
    monitored = tmp_path / "monitor"
    with monitored.open("wb") as file:
        monitor = subprocess.Popen(
            ["nsenter", f"--net={world.node.path}", "ip", "-4", "monitor", "route", "neigh"],
            stdout=file,
        )
    try:
        eventually(lambda: is_told(world, monitored, "100.64.0.1"), what="a monitor that listens")
        delete_all(world)
        wait_held(world, agent, len(PEERS))
        for i in PEERS[5:]:
            put(world, i)
        put(world, 10, at=77)  # claimed another subnet
        put(world, 99, at=11)  # another node took this one
        put(world, 98)  # has nothing to do with any of it
        wanted = {f"10.244.{i}.0/24" for i in (*PEERS[1:], 77, 98)}
        eventually(lambda: nodes(world) == wanted, timeout_s=20, what=agent.log[-2000:])
        wait_held(world, agent, 3)
        fdb = world.node.run("bridge", "fdb", "show", "dev", "overlay.1")
        assert "dst 192.0.2.99" in fdb
        eventually(lambda: is_told(world, monitored, "100.64.0.2"), what="all that was told")
    finally:
        monitor.terminate()
        monitor.wait(10)
    told = monitored.read_text()
    assert "10.244.77.0/24" in told
    untouched = [i for i in PEERS if i not in {10, 11}]
    assert [i for i in untouched if re.search(rf"(10\.244|192\.0\.2)\.{i}\b", told)] == []


def is_told(world: World, monitored: Path, address: str) -> bool:
    """Make and remove a route of the host's own; return whether the monitor has told of one."""
    for verb in ("add", "del"):
        world.node.ip("route", verb, "blackhole", address)
    return address in monitored.read_text()


def nodes(world: World) -> set[str]:
    return set(re.findall(r"^(10\.244\.\d+\.0/24) via", world.node.ip("route"), re.MULTILINE))


def test_agent_killed_during_the_hold_holds_on(world: World) -> None:
    agent = start(world)
    delete_all(world)
    wait_held(world, agent, len(PEERS))
    agent.process.kill()
    agent.process.wait(10)
    again = world.agent("--audit-interval=1h")
    again.wait_ready()
    wait_held(world, again, len(PEERS))
    assert routes(world) == set(PEERS)
    assert "set route" not in again.log, "nothing was taken away in between"
    world.overlayctl("peers", "keep")
    assert held(world) == {"peers": len(PEERS), "seconds_left": None}
    assert "overlay_peers_held_remaining_seconds +Inf" in again.get("/metrics")[1]
    for i in PEERS:
        put(world, i)
    eventually(lambda: held(world) is None, timeout_s=20, what=again.log[-2000:])
    assert routes(world) == set(PEERS)


def test_etcd_put_back_from_a_backup_of_before_the_peers_costs_no_traffic(
    world: World, tmp_path: Path
) -> None:
    agent = world.agent("--audit-interval=1h")
    agent.wait_ready()
    world.etcd.stop()
    shutil.copytree(tmp_path / "etcd" / "member", tmp_path / "backup")
    world.node.call(world.etcd.start)
    for i in PEERS:
        put(world, i)
    eventually(lambda: try_routes(world) == set(PEERS), timeout_s=20, what=agent.log[-2000:])
    world.etcd.stop()
    shutil.rmtree(tmp_path / "etcd" / "member")
    shutil.copytree(tmp_path / "backup", tmp_path / "etcd" / "member")
    world.node.call(world.etcd.start)
    wait_held(world, agent, len(PEERS))
    assert routes(world) == set(PEERS)


def test_off_and_bad_values(world: World) -> None:
    bad = world.agent("--max-prune=150%")
    status, said = bad.wait_exit()
    assert status == 2
    assert "argument --max-prune: '150%' is no limit; write a share of the peers" in said
    agent = start(world, "--max-prune=off")
    delete_all(world)
    eventually(lambda: not try_routes(world), timeout_s=20, what=agent.log[-2000:])
    assert held(world) is None
