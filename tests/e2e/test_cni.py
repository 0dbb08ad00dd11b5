"""The real plugin, the real agent, real pods: what a runtime asks for and gets."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import overlay_cni.plugin
from tests.e2e.agents import BIN, RunningAgent, World
from tests.kernel.netns import Netns, eventually, host_unchanged
from tests.unit.cni_plugins import build

pytestmark = pytest.mark.e2e

CONFIG = json.dumps(
    {
        "Network": "10.244.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00:1::/48",
        "Backend": {"Type": "vxlan"},
    }
)
BOTH_FORMS = ("python", "shim")
PLUGIN = [sys.executable, "-ISE", overlay_cni.plugin.__file__]


class Node:
    """A running agent, and a runtime that executes the plugin on its node."""

    def __init__(self, world: World, agent: RunningAgent) -> None:
        self.world, self.agent = world, agent
        self.socket = str(world.place / "state" / "cni.sock")
        self.pods: list[Netns] = []
        self.plugin = PLUGIN

    def pod(self) -> Netns:
        self.pods.append(Netns())
        return self.pods[-1]

    def config(self, **extra: Any) -> dict[str, Any]:
        plain = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay"}
        return {**plain, "socket": self.socket, **extra}

    def cni(
        self,
        command: str,
        container: str = "",
        netns: str = "",
        interface: str = "eth0",
        args: str = "",
        config: dict[str, Any] | None = None,
        **extra: Any,
    ) -> tuple[int, Any]:
        """Execute the plugin; return its exit status and what it printed, parsed."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": interface,
            "CNI_ARGS": args,
            "CNI_PATH": "/opt/cni/bin",
            "PATH": os.environ["PATH"],
        }
        done = self.world.node.call(
            lambda: subprocess.run(
                self.plugin,
                input=json.dumps(self.config(**extra, **(config or {}))).encode(),
                env=environment,
                capture_output=True,
                check=False,
                timeout=60,
            )
        )
        assert done.stderr == b""
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def add(self, container: str, pod: Netns, **extra: Any) -> dict[str, Any]:
        status, result = self.cni("ADD", container, str(pod.path), **extra)
        assert status == 0, result
        assert isinstance(result, dict)
        return result


@contextlib.contextmanager
def running_node(
    place: Path, *flags: str, under: tuple[str, ...] = (), config: str = CONFIG
) -> Iterator[Node]:
    """Run a node with an agent that is ready; the host is afterwards as it was.

    ``under`` is a command that runs the agent.
    """
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        world = World(make, place)
        world.start_etcd()
        world.put("config", config)
        agent = world.agent(*flags, under=under)
        agent.wait_ready()
        here = Node(world, agent)
        yield here
        world.close()
        for netns in (*made, *here.pods):
            netns.close()


@pytest.fixture(scope="module", params=BOTH_FORMS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    place = tmp_path_factory.mktemp("cni")
    with running_node(place) as here:
        here.plugin = [str(build(request.param, place / "bin").path)]
        yield here


def addresses(result: dict[str, Any]) -> list[str]:
    return [ip["address"].split("/")[0] for ip in result["ips"]]


def says(sender: Netns, receiver: Netns, target: str, source: str = "") -> str | None:
    """Return the source address with which a datagram arrives, or None."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with receiver.socket(family, socket.SOCK_DGRAM) as far:
        far.bind((target, 4343))
        far.settimeout(0.5)
        with sender.socket(family, socket.SOCK_DGRAM) as near:
            near.bind((source, 0))
            for _ in range(6 if not source else 2):
                near.sendto(b"hello", (target, 4343))
                try:
                    return str(far.recvfrom(64)[1][0])
                except TimeoutError:
                    continue
    return None


def host_links(node: Node) -> list[str]:
    links = node.world.node.ip_json("link", "show", "type", "veth")
    return [link["ifname"] for link in links if link["ifname"].startswith("opod")]


def test_pods_are_attached_and_reach_one_another_the_node_and_it_them(node: Node) -> None:
    a, b = node.pod(), node.pod()
    first, second = node.add("a" * 64, a), node.add("b" * 64, b)
    assert first["cniVersion"] == "1.1.0"
    assert [i["name"][:4] for i in first["interfaces"]] == ["opod", "eth0"]
    assert first["interfaces"][1]["sandbox"] == str(a.path)
    assert first["interfaces"][1]["mtu"] == 1430
    for mine, theirs in zip(addresses(first), addresses(second), strict=True):
        assert says(a, b, theirs) == mine
        assert says(node.world.node, a, mine) is not None
    assert says(a, node.world.node, "192.0.2.1") == addresses(first)[0]
    status, _ = node.cni("CHECK", "a" * 64, str(a.path), prevResult=first)
    assert status == 0
    for container in ("a" * 64, "b" * 64):
        assert node.cni("DEL", container) == (0, None)
        assert node.cni("DEL", container) == (0, None), "twice is fine"
    assert host_links(node) == []
    assert "eth0" not in a.ip("link")


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_result_has_the_shape_of_its_version(node: Node, version: str) -> None:
    pod = node.pod()
    result = node.add(f"v{version}", pod, cniVersion=version)
    assert result["cniVersion"] == version
    is_old = version.startswith("0.")
    assert all(("version" in ip) == is_old for ip in result["ips"])
    assert ("mtu" in result["interfaces"][1]) == (version == "1.1.0")
    assert [ip["interface"] for ip in result["ips"]] == [1, 1]
    place = (f"v{version}", str(pod.path))
    asked = {
        "CHECK": node.cni("CHECK", *place, cniVersion=version, prevResult=result),
        "GC": node.cni("GC", cniVersion=version),
        "STATUS": node.cni("STATUS", cniVersion=version),
    }
    since = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
    for command, (status, answer) in asked.items():
        if version >= since[command]:
            assert (status, answer) == (0, None)
        else:
            assert (status, answer["code"], answer["cniVersion"]) == (1, 1, version)
    assert node.cni("DEL", *place, cniVersion=version) == (0, None)
    assert host_links(node) == []


def test_second_add_is_refused_and_the_first_kept(node: Node) -> None:
    pod = node.pod()
    first = node.add("twice", pod)
    status, error = node.cni("ADD", "twice", str(pod.path))
    assert (status, error["code"], error["cniVersion"]) == (1, 100, "1.1.0")
    assert "attached already" in error["msg"]
    assert node.cni("CHECK", "twice", str(pod.path), prevResult=first)[0] == 0
    node.cni("DEL", "twice")


def test_several_interfaces_of_one_pod(node: Node) -> None:
    pod = node.pod()
    node.add("multi", pod, interface="eth1")
    node.add("multi", pod, interface="eth0")
    assert len({r["dev"] for r in pod.ip_json("route", "show", "default")}) == 1
    for interface in ("eth0", "eth1"):
        node.cni("DEL", "multi", interface=interface)
    assert host_links(node) == []


def test_static_address_and_mac(node: Node) -> None:
    pod = node.pod()
    subnet = addresses(node.add("probe", pod))[0].rsplit(".", 1)[0]
    runtime = {"ips": [f"{subnet}.200/24"], "mac": "02:00:00:00:12:34"}
    other = node.pod()
    result = node.add("static", other, runtimeConfig=runtime)
    assert addresses(result)[0] == f"{subnet}.200"
    assert result["interfaces"][1]["mac"] == "02:00:00:00:12:34"
    third = node.pod()
    status, error = node.cni("ADD", "third", str(third.path), runtimeConfig=runtime)
    assert (status, error["code"]) == (1, 7)
    assert f"{subnet}.200 is in use" in error["msg"]
    outside = {"ips": ["192.0.2.77"]}
    status, error = node.cni("ADD", "third", str(third.path), runtimeConfig=outside)
    assert "192.0.2.77 is not one of this node's" in error["msg"]
    assert "eth0" not in third.ip("link"), "nothing half done"
    for container in ("probe", "static"):
        node.cni("DEL", container)
    assert host_links(node) == []


def test_interface_that_exists_leaves_no_address_in_use(node: Node) -> None:
    pod = node.pod()
    pod.ip("link", "add", "eth0", "type", "bridge")
    status, error = node.cni("ADD", "taken", str(pod.path))
    assert (status, error["code"]) == (1, 102)
    assert "exists already" in error["msg"]
    assert host_links(node) == []
    pod.ip("link", "del", "eth0")
    node.add("taken", pod)
    node.cni("DEL", "taken")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("addr flush dev eth0", "address 10.244."),
        ("link set eth0 down", "eth0 is down"),
        ("link set eth0 address 02:00:00:00:00:01", "has MAC 02:00:00:00:00:01"),
        ("link del eth0", "eth0 is missing"),
        ("route del default", "route 0.0.0.0/0 via 169.254.1.1 is missing"),
        ("-6 route del default", "route ::/0 via fe80::1 is missing"),
    ],
)
def test_check_finds_what_is_lost(node: Node, damage: str, named: str) -> None:
    pod = node.pod()
    result = node.add("checked", pod)
    pod.ip(*damage.split())
    status, error = node.cni("CHECK", "checked", str(pod.path), prevResult=result)
    assert (status, error["code"]) == (1, 103)
    assert named in error["msg"]
    node.cni("DEL", "checked")
    status, error = node.cni("CHECK", "checked", str(pod.path), prevResult=result)
    assert (status, error["code"]) == (1, 3), "it is attached no more"


def test_check_tolerates_what_others_added_and_took_out_of_the_result(node: Node) -> None:
    pod = node.pod()
    result = node.add("edited", pod)
    pod.ip("addr", "add", "203.0.113.5/32", "dev", "eth0")
    pod.ip("route", "del", "default")
    result["routes"] = [r for r in result["routes"] if r["dst"] != "0.0.0.0/0"]
    assert node.cni("CHECK", "edited", str(pod.path), prevResult=result)[0] == 0
    status, error = node.cni("CHECK", "edited", str(pod.path))
    assert (status, error["code"]) == (1, 7)
    node.cni("DEL", "edited")


def test_collection_keeps_what_is_valid_and_does_nothing_untold(node: Node) -> None:
    pods = {name: node.pod() for name in ("kept", "stale")}
    for name, pod in pods.items():
        node.add(name, pod)
    assert node.cni("GC") == (0, None)
    assert len(host_links(node)) == 2
    valid = [{"containerID": "kept", "ifname": "eth0"}]
    assert node.cni("GC", config={"cni.dev/valid-attachments": valid}) == (0, None)
    assert len(host_links(node)) == 1
    assert "eth0" in pods["kept"].ip("link")
    assert node.cni("GC", config={"cni.dev/valid-attachments": None}) == (0, None)
    assert host_links(node) == []


def test_namespace_that_went_frees_its_address_after_del(node: Node) -> None:
    pod = node.pod()
    node.add("gone", pod)
    pod.close()
    eventually(lambda: host_links(node) == [])
    assert node.cni("DEL", "gone", "/run/netns/nowhere") == (0, None)


def test_addresses_are_used_again_as_late_as_possible(node: Node) -> None:
    seen = []
    for i in range(4):
        pod = node.pod()
        seen.append(addresses(node.add(f"seq{i}", pod))[0])
        node.cni("DEL", f"seq{i}")
    assert len(set(seen)) == 4


def test_agent_killed_and_back_remembers(node: Node) -> None:
    pod = node.pod()
    result = node.add("lasting", pod)
    node.agent.process.kill()
    node.agent.process.wait(10)
    gone = node.pod()
    node.agent = node.world.agent()
    node.agent.wait_ready()
    assert node.cni("CHECK", "lasting", str(pod.path), prevResult=result)[0] == 0
    other = node.add("other", gone)
    assert set(addresses(other)).isdisjoint(addresses(result))
    for container in ("lasting", "other"):
        node.cni("DEL", container)
    assert host_links(node) == []


def test_addresses_alone_for_another_plugin(node: Node) -> None:
    pod = node.pod()
    ipam: dict[str, Any] = {"ipam": {"type": "overlay"}, "type": "bridge"}
    result = node.add("delegate", pod, **ipam)
    assert "interfaces" not in result
    assert result["ips"][0]["address"].endswith("/24")
    assert result["ips"][0]["gateway"].endswith(".1")
    assert host_links(node) == []
    assert node.cni("DEL", "delegate", **ipam) == (0, None)


def test_pod_cannot_send_as_another(node: Node) -> None:
    a, b = node.pod(), node.pod()
    mine = addresses(node.add("honest", a))
    theirs = addresses(node.add("victim", b))
    for own, other in zip(mine, theirs, strict=True):
        target = "192.0.2.1" if ":" not in own else "2001:db8::1"
        a.ip("addr", "add", other, "dev", "eth0", *(["nodad"] if ":" in own else []))
        assert says(a, node.world.node, target, own) == own
        assert says(a, node.world.node, target, other) is None
    listed = node.world.node.nft("list", "chain", "inet", "overlay", "ov_source")
    assert "counter packets 0" not in listed, "and it is counted"
    for container in ("honest", "victim"):
        node.cni("DEL", container)


def test_operator_sees_attachments_and_frees_what_is_stale(node: Node) -> None:
    pod = node.pod()
    told = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
    result = node.add("listed", pod, args=told)
    text = node.world.overlayctl("ipam", "list")
    assert addresses(result)[0] in text
    assert "shop/web-0" in text
    assert "1 of 253 in use" in text
    assert "in step" in node.world.overlayctl("ipam", "check")
    link = result["interfaces"][0]["name"]
    node.world.node.ip("link", "del", link)
    assert "ipam release listed" in node.world.overlayctl("ipam", "check", check=False)
    assert "released" in node.world.overlayctl("ipam", "release", "listed")
    assert json.loads(node.world.overlayctl("ipam", "list", "-o", "json"))["attachments"] == []


def test_delegate_of_a_network_that_was_wired_before_leaves_no_link(node: Node) -> None:
    """Somebody put `bridge` before us, under the network's old name, while a pod ran."""
    pod = node.pod()
    node.add("changed", pod)
    assert node.cni("DEL", "changed", ipam={"type": "overlay"}, type="bridge") == (0, None)
    assert host_links(node) == []
    assert "eth0" not in pod.ip("link")


def test_keys_and_arguments_of_others_are_left_to_them(node: Node) -> None:
    pod = node.pod()
    extra: dict[str, Any] = {
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "capabilities": {"portMappings": True, "bandwidth": True},
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 1000},
            "infinibandGUID": "c2:11:22:33:44:55:66:77",
        },
        "example.org/key": [1, {"of": None}],
    }
    told = "IgnoreUnknown=0;FOO=bar;odd;K8S_POD_INFRA_CONTAINER_ID=abc"
    result = node.add("others", pod, args=told, **extra)
    assert node.cni("CHECK", "others", str(pod.path), prevResult=result, **extra) == (0, None)
    assert "8080" not in node.world.node.nft("list", "ruleset")
    assert "tbf" not in node.world.node.run("tc", "qdisc", "show")
    assert node.cni("DEL", "others", **extra) == (0, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": 5},
        {"mtu": "1500"},
        {"prevResult": [7]},
        {"runtimeConfig": {"ips": "none", "mac": 0, "ipRanges": 1}},
        {"labels": 1, "args": 2, "ipam": 3},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_del_releases_everything_whatever_else_is_wrong(node: Node, wrong: dict[str, Any]) -> None:
    pod = node.pod()
    node.add("odd", pod)
    status, error = node.cni("ADD", "odd2", str(node.pod().path), config=wrong)
    assert (status, error["code"]) == (1, 7)
    assert any(f'"{key}' in error["msg"] for key in ("ips", *wrong)), "the key is named"
    assert node.cni("DEL", "odd", config=wrong) == (0, None)
    assert host_links(node) == []
    assert "1 of" not in node.world.overlayctl("ipam", "list")


def test_status_is_fine(node: Node) -> None:
    assert node.cni("STATUS") == (0, None)


def test_reset_detaches_the_pods_too(node: Node) -> None:
    pod = node.pod()
    node.add("last", pod)
    node.agent.terminate()
    command = ["overlayctl", "--socket", node.socket, "node", "reset", "--yes"]
    state = str(node.world.place / "state")
    node.world.node.run(str(BIN / command[0]), *command[1:], "--state-dir", state)
    assert host_links(node) == []
    assert "eth0" not in pod.ip("link")
    assert list((node.world.place / "state").iterdir()) == []
