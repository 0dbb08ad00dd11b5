"""The real ``overlayd`` on a real etcd and kernel: flannel beside it, ends, starts, bad input."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.agents import BIN, World
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
# To the letter what flannel v0.28 writes for a node without IPv6.
FLANNEL_MAC = "c6:1d:62:0e:11:22"
FLANNEL_KEY = "subnets/10.244.77.0-24"
FLANNEL_VALUE = (
    '{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan",'
    f'"BackendData":{{"VNI":1,"VtepMAC":"{FLANNEL_MAC}"}}}}'
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        here = World(make, tmp_path)
        yield here
        here.close()
        for netns in made:
            netns.close()


@pytest.fixture
def ready(world: World) -> World:
    """Return a world whose etcd runs and holds a config and a lease of flannel's."""
    world.start_etcd()
    world.put("config", CONFIG)
    world.put(FLANNEL_KEY, FLANNEL_VALUE)
    return world


def own_lease(world: World) -> tuple[str, dict[str, object]]:
    return next((k, v) for k, v in world.leases().items() if v["PublicIP"] == "192.0.2.1")


def flannel_node(world: World) -> None:
    """Make ``far`` what flannel makes of a node that has read our lease."""
    key, value = own_lease(world)
    subnet = key.removesuffix("-24")
    data = value["BackendData"]
    assert isinstance(data, dict)
    vxlan = f"type vxlan id {data['VNI']} local 192.0.2.2 dev eth0 dstport 8472 nolearning"
    for line in (
        f"link add flannel.1 address {FLANNEL_MAC} {vxlan}",
        "addr add 10.244.77.0/32 dev flannel.1",
        "link set flannel.1 up",
        f"neigh replace {subnet} lladdr {data['VtepMAC']} dev flannel.1 nud permanent",
        f"route replace {subnet}/24 via {subnet} dev flannel.1 onlink",
    ):
        world.far.ip(*line.split())
    fdb = f"fdb replace {data['VtepMAC']} dev flannel.1 dst {value['PublicIP']} self permanent"
    world.far.run("bridge", *fdb.split())


def reaches(sender: Netns, source: str, receiver: Netns, target: str) -> bool:
    """Return whether a datagram arrives, with the source address that it was sent with."""
    with receiver.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind((target, 4242))
        far.settimeout(0.5)
        with sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
            near.bind((source, 0))
            for _ in range(4):
                near.sendto(b"there?", (target, 4242))
                try:
                    return bool(far.recvfrom(64)[1][0] == source)
                except TimeoutError:
                    continue
    return False


def test_lease_in_flannels_form_is_a_full_peer_and_flannel_can_use_ours(ready: World) -> None:
    agent = ready.agent()
    agent.wait_ready()
    key, value = own_lease(ready)
    assert set(value) == {
        "PublicIP",
        "PublicIPv6",
        "BackendType",
        "BackendData",
        "Overlay",
        "_ttl",
    }
    assert value["PublicIPv6"] is None
    assert value["BackendType"] == "vxlan"
    assert value["_ttl"], "bound to an etcd lease"
    flannel_node(ready)
    ours = key.removesuffix("-24")
    assert reaches(ready.node, ours, ready.far, "10.244.77.0")
    assert reaches(ready.far, "10.244.77.0", ready.node, ours)


def test_what_leaves_the_node_is_flannels_vxlan(ready: World) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether
    from scapy.layers.vxlan import VXLAN

    ready.agent().wait_ready()
    key, value = own_lease(ready)
    ours = key.removesuffix("-24")
    wire = ready.far.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    wire.bind(("eth0", 3))
    wire.settimeout(5)
    sender = ready.node.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((ours, 0))
    sender.sendto(b"through the fabric", ("10.244.77.9", 4242))
    while True:
        frame = Ether(wire.recv(4096))
        if UDP in frame and frame[UDP].dport == 8472:
            break
    outer, inner = frame, frame[VXLAN].payload
    data = value["BackendData"]
    assert isinstance(data, dict)
    assert (outer[IP].src, outer[IP].dst) == ("192.0.2.1", "192.0.2.2")
    assert (outer[VXLAN].vni, int(outer[VXLAN].flags)) == (1, 0x08)
    assert (inner[Ether].src, inner[Ether].dst) == (data["VtepMAC"], FLANNEL_MAC)
    assert (inner[IP].src, inner[IP].dst) == (ours, "10.244.77.9")
    assert bytes(inner[UDP].payload) == b"through the fabric"


def test_sigterm_ends_it_and_leaves_forwarding_then_the_same_subnet_again(ready: World) -> None:
    agent = ready.agent()
    agent.wait_ready()
    key, _ = own_lease(ready)
    flannel_node(ready)
    assert agent.terminate() == 0
    assert reaches(ready.far, "10.244.77.0", ready.node, key.removesuffix("-24"))
    assert not (ready.place / "state" / "cni.sock").exists()
    before = ready.node.ip("-d", "route", "show", "table", "all")
    ready.agent().wait_ready()
    assert own_lease(ready)[0] == key
    assert ready.node.ip("-d", "route", "show", "table", "all") == before


def test_peer_that_went_while_the_agent_was_down_is_gone_after_the_start(ready: World) -> None:
    agent = ready.agent()
    agent.wait_ready()
    assert "10.244.77.0/24" in ready.node.ip("route")
    agent.process.kill()
    agent.process.wait(5)
    ready.delete(FLANNEL_KEY)
    ready.agent().wait_ready()
    assert "10.244.77.0/24" not in ready.node.ip("route")
    assert FLANNEL_MAC not in ready.node.run("bridge", "fdb", "show", "dev", "overlay.1")


def test_subnet_file_is_flannels_and_root_alone_reads_it(ready: World) -> None:
    ready.agent().wait_ready()
    path = ready.place / "state" / "subnet.env"
    gateway = own_lease(ready)[0].replace(".0-24", ".1/24")
    assert path.read_text() == (
        f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert path.stat().st_mode & 0o777 == 0o600
    assert (ready.place / "state" / "cni.sock").stat().st_mode & 0o777 == 0o600


def test_waiting_for_etcd_then_for_a_config_then_running(world: World) -> None:
    agent = world.agent()
    away = agent.wait_for_reason("waiting for the store")
    assert not away["store_connected"]
    world.start_etcd()
    agent.wait_for_reason("waiting for a network config")
    world.put("config", '{"Network": "10.244.0.0/16", "Backed": {}}')
    reason = agent.wait_for_reason("network config invalid")
    assert "Backed" in " ".join(reason["reasons"])
    world.put("config", '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 0}}')
    reason = agent.wait_for_reason("Backend.VNI")
    world.put("config", CONFIG)
    agent.wait_ready()
    assert agent.get("/healthz") == (200, "ok\n")
    assert "overlay_ready 1.0" in agent.get("/metrics")[1]


def test_no_state_of_waiting_spins(world: World) -> None:
    agent = world.agent("--subnet-lease-ttl=4s", "--subnet-lease-renew-margin=2s")

    def is_calm() -> bool:
        before = agent.cpu_s()
        time.sleep(2.0)  # time in which nothing happens is what this is about
        return agent.cpu_s() - before < 0.5  # of the 2 s that a loop without a pause takes

    agent.wait_for_reason("waiting for the store")
    assert is_calm()
    world.start_etcd()
    agent.wait_for_reason("waiting for a network config")
    assert is_calm()
    world.put("config", '{"Network": "10.244.0.0/16", "Nonsense": 1}')
    agent.wait_for_reason("network config invalid")
    assert is_calm()
    world.put("config", CONFIG)
    agent.wait_ready()
    world.node.ip("link", "set", "eth0", "down")
    assert is_calm(), "underlay down"
    world.node.ip("link", "set", "eth0", "up")
    world.etcd.kill()
    assert is_calm(), "renewal overdue"
    world.start_etcd()
    agent.wait_ready()


def test_keys_that_cannot_be_read_change_nothing_else(ready: World) -> None:
    agent = ready.agent()
    agent.wait_ready()
    ready.put("subnets/garbage", "x")
    ready.put("subnets/10.244.5.0-24", "{")
    ready.put("subnets/10.244.6.0-24", b"\xff\xfe")
    ready.put(
        "subnets/10.0.0.0-8",
        FLANNEL_VALUE.replace("192.0.2.2", "192.0.2.3"),
    )
    ready.put(FLANNEL_KEY, "garbage now")
    eventually(lambda: "overlay_lease_keys_skipped 4.0" in agent.get("/metrics")[1])
    eventually(lambda: "overlay_lease_problems 1.0" in agent.get("/metrics")[1])
    assert agent.get("/readyz")[0] == 200
    assert "10.244.77.0/24" in ready.node.ip("route"), "a working peer stays"
    assert "10.0.0.0/8" not in ready.node.ip("route")
    for name in ("subnets/garbage", "10.244.5.0-24", "10.244.6.0-24", "10.0.0.0-8"):
        assert name.removeprefix("subnets/") in agent.log


def test_config_that_turns_bad_leaves_the_last_good_one_in_force(ready: World) -> None:
    agent = ready.agent()
    agent.wait_ready()
    ready.put("config", "{nonsense")
    eventually(lambda: "stays in force" in agent.log)
    assert agent.get("/readyz")[0] == 200
    ready.put("config", CONFIG[:-1] + ', "Egress": {"Mode": "isolated"}}')
    eventually(lambda: "ov_to_pod" in ready.node.nft("list", "table", "inet", "overlay"))


def test_own_lease_deleted_is_claimed_again(ready: World) -> None:
    agent = ready.agent()
    agent.wait_ready()
    key, value = own_lease(ready)
    ready.delete(f"subnets/{key}")
    eventually(lambda: key in ready.leases())
    assert own_lease(ready)[1]["_ttl"] != value["_ttl"]
    agent.wait_ready()


def test_flannels_own_lease_of_this_node_is_taken_over(ready: World) -> None:
    ready.put("subnets/10.244.9.0-24", FLANNEL_VALUE.replace("192.0.2.2", "192.0.2.1"))
    ready.agent().wait_ready()
    key, value = own_lease(ready)
    assert key == "10.244.9.0-24"
    assert value["Overlay"]["NodeID"] == "here"  # type: ignore[index]  # JSON


def test_two_nodes_with_one_public_ip(ready: World) -> None:
    other = json.loads(FLANNEL_VALUE) | {"Overlay": {"NodeID": "other", "NodeName": "other"}}
    other["PublicIP"] = "192.0.2.1"
    ready.put("subnets/10.244.9.0-24", json.dumps(other))
    before = ready.leases()
    status, line = ready.agent().wait_exit()
    assert status == 6
    for word in ("other", "here", "192.0.2.1", "10.244.9.0", "overlayctl leases release"):
        assert word in line
    assert ready.leases() == before
    assert "overlay.1" not in ready.node.ip("link")


def test_lease_rewritten_in_our_name_by_nobody_who_lives_is_mended(ready: World) -> None:
    """A clone that lives would answer: tests/e2e/test_twins.py."""
    agent = ready.agent()
    agent.wait_ready()
    key, value = own_lease(ready)
    twin = {k: v for k, v in value.items() if k != "_ttl"} | {"PublicIP": "192.0.2.66"}
    ready.put(f"subnets/{key}", json.dumps(twin))
    eventually(
        lambda: ready.leases()[key]["PublicIP"] == "192.0.2.1",
        timeout_s=20,
        what=f"our lease with our address, log {agent.log}",
    )
    agent.wait_ready()
    assert "10.244.77.0/24" in ready.node.ip("route"), "forwarding goes on"
    assert "(192.0.2.66); asking whether that node is alive" in agent.log


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("link add overlay.1 type bridge", ["overlay.1", "ip link del overlay.1"]),
        (
            "link add flannel.1 type vxlan id 1 dstport 8472 dev eth0",
            ["flannel.1", "VNI 1", "stop flannel"],
        ),
    ],
)
def test_foreign_device_in_the_way(ready: World, made: str, words: list[str]) -> None:
    ready.node.ip(*made.split())
    before = ready.leases()
    status, line = ready.agent().wait_exit()
    assert status == 5
    assert all(word in line for word in words), line
    assert ready.leases() == before, "nothing half done"
    assert "table inet overlay" not in ready.node.nft("list", "tables")


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--iface=nope0"], 4, ["--iface nope0", "there are eth0"]),
        (["--iface-regex=("], 2, ["--iface-regex"]),
        (["--public-ip=999.1.1.1"], 2, ["--public-ip"]),
        (["--public-ip=2001:db8::1"], 2, ["--public-ip", "IPv4"]),
        (["--etcd-endpoints=ftp://127.0.0.1:2379"], 2, ["--etcd-endpoints", "http"]),
        (["--etcd-cafile=/nope.pem"], 2, ["--etcd-cafile", "/nope.pem"]),
        (["--etcd-certfile=/etc/hostname"], 2, ["--etcd-keyfile"]),
        (["--healthz-port=70000"], 2, ["--healthz-port", "70000"]),
        (["--subnet-lease-renew-margin=25h"], 2, ["--subnet-lease-renew-margin"]),
        (["--state-dir=relative"], 2, ["--state-dir", "absolute"]),
        (["--node-name=a b"], 2, ["--node-name"]),
        (["--nonsense"], 2, ["--nonsense", "--help"]),
    ],
)
def test_flags_that_cannot_be_used(
    world: World, flags: list[str], status: int, words: list[str]
) -> None:
    # Named, for a host without /etc/machine-id; each flag under test beats the one before it.
    arguments = ["--node-name=here", f"--state-dir={world.place}/state"]
    arguments += [*([] if flags[0].startswith("--iface") else ["--iface=eth0"]), *flags]
    done = world.node.call(
        lambda: subprocess.run(
            [str(BIN / "overlayd"), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("overlayd: ")
    assert done.stderr.count("\n") == 1, "one line"
    assert all(word in done.stderr for word in words), done.stderr
    assert not (world.place / "state").exists(), "nothing half done"


def test_underlay_address_inside_the_pod_network(ready: World) -> None:
    ready.put("config", '{"Network": "192.0.0.0/16"}')
    status, line = ready.agent().wait_exit()
    assert status == 4
    assert "192.0.2.1 lies inside the pod network 192.0.0.0/16" in line


def test_second_agent_on_one_node_is_refused(ready: World) -> None:
    ready.agent().wait_ready()
    status, line = ready.agent("--healthz-port=0").wait_exit()
    assert status == 2
    assert "another overlayd" in line


def test_reset_removes_all_and_a_running_agent_is_not_pulled_from_under(ready: World) -> None:
    agent = ready.agent()
    agent.wait_ready()
    socket_path = ready.place / "state" / "cni.sock"
    command = [str(BIN / "overlayctl"), "--socket", str(socket_path), "node", "reset", "--yes"]

    def reset() -> "subprocess.CompletedProcess[str]":
        return ready.node.call(
            lambda: subprocess.run(command, capture_output=True, text=True, check=False)
        )

    refused = reset()
    assert refused.returncode == 2
    assert "stop it first" in refused.stderr
    assert agent.get("/readyz")[0] == 200
    agent.terminate()
    assert reset().returncode == 0
    assert "overlay.1" not in ready.node.ip("link")
    assert "proto 79" not in ready.node.ip("route", "show", "table", "all")
    assert "20310" not in ready.node.ip("rule")
    assert "overlay" not in ready.node.nft("list", "tables")


def test_json_logs_are_one_object_a_line(ready: World) -> None:
    agent = ready.agent("--log-format=json")
    agent.wait_ready()
    lines = [json.loads(line) for line in agent.log.splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])


def test_systemd_is_told(ready: World, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(20)
        import os

        os.environ["NOTIFY_SOCKET"] = str(path)
        try:
            agent = ready.agent()
        finally:
            del os.environ["NOTIFY_SOCKET"]
        seen = b""
        while b"READY=1" not in seen:
            seen = systemd.recv(4096)
        agent.terminate()
        while b"STOPPING=1" not in seen:
            seen = systemd.recv(4096)
    assert b"STOPPING=1" in seen
