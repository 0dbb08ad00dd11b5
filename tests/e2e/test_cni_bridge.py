"""Mode ``bridge`` with the real agent: who reaches whom, who cannot pretend, what comes back."""

import json
import socket
import struct
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest

from overlay.kernel.announce import frame
from overlay.model.address import parse_mac
from overlay.policy.ports import link_local
from tests.e2e.agents import BIN
from tests.e2e.test_cni import BOTH_FORMS, CONFIG, Node, addresses, host_links, running_node, says
from tests.kernel.netns import Netns, eventually
from tests.unit.cni_plugins import build

pytestmark = pytest.mark.e2e

BRIDGE: Final = "opod-bridge"
DEADLINE_S: Final = 20.0


@pytest.fixture(scope="module", params=BOTH_FORMS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    place = tmp_path_factory.mktemp("bridge")
    with running_node(place, "--audit-interval=5s") as here:
        here.plugin = [str(build(request.param, place / "bin").path)]
        yield here


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    """Each test leaves the node without pods."""
    yield
    node.cni("GC", config={"cni.dev/valid-attachments": []})
    assert host_links(node) == []


def attach(node: Node, name: str, **extra: Any) -> tuple[Netns, dict[str, Any]]:
    pod = node.pod()
    return pod, node.add(name, pod, **{"mode": "bridge", **extra})


def gateways(result: dict[str, Any]) -> list[str]:
    return [ip["gateway"] for ip in result["ips"]]


def bridge_of(node: Node) -> Any:
    found = node.world.node.ip_json("addr", "show", "dev", BRIDGE)
    return found[0]


def test_result_and_interface_are_layer_2(node: Node) -> None:
    pod, result = attach(node, "a")
    assert [i["name"] for i in result["interfaces"]][::2] == [BRIDGE, "eth0"]
    assert {i["mtu"] for i in result["interfaces"]} == {1430}
    assert [ip["interface"] for ip in result["ips"]] == [2, 2]
    assert [ip["address"].split("/")[1] for ip in result["ips"]] == ["24", "64"]
    bridge = bridge_of(node)
    assert (bridge["address"], bridge["mtu"]) == (result["interfaces"][0]["mac"], 1430)
    assert (bridge["ifalias"], bridge["linkinfo"]["info_data"]["forward_delay"]) == (
        "overlay-fabric",
        0,
    )
    shown = [a["local"] for a in bridge["addr_info"] if a["scope"] == "global"]
    assert shown == gateways(result), "the first address of each subnet"
    (port,) = node.world.node.ip_json("link", "show", "dev", result["interfaces"][1]["name"])
    assert port["master"] == BRIDGE
    assert port["linkinfo"]["info_slave_data"]["hairpin"] is True
    (link,) = pod.ip_json("addr", "show", "dev", "eth0")
    assert not any(a.get("tentative") for a in link["addr_info"]), "nobody waits"
    for option, gateway in zip(("-4", "-6"), gateways(result), strict=True):
        (default,) = pod.ip_json(option, "route", "show", "default")
        assert default["gateway"] == gateway
    assert pod.sysctl("net/ipv6/conf/eth0/accept_ra") == "0"


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_result_has_the_shape_of_its_version(node: Node, version: str) -> None:
    _, result = attach(node, "v", cniVersion=version)
    assert all(("version" in ip) == version.startswith("0.") for ip in result["ips"])
    assert all(("mtu" in i) == (version == "1.1.0") for i in result["interfaces"])


def test_pods_of_both_modes_reach_each_other_and_the_node(node: Node) -> None:
    pods = {
        "first routed": attach(node, "r1", mode="ptp"),
        "one": attach(node, "a"),
        "two": attach(node, "b"),
        "routed": attach(node, "r2", mode="ptp"),
    }
    unheard = []
    for name, (pod, result) in pods.items():
        for other, (target, theirs) in pods.items():
            for mine, to in zip(addresses(result), addresses(theirs), strict=True):
                if other != name and says(pod, target, to) != mine:
                    unheard.append(f"{name} to {other} at {to}")
        for mine, to in zip(addresses(result), ("192.0.2.1", "2001:db8::1"), strict=True):
            if says(pod, node.world.node, to) != mine:
                unheard.append(f"{name} to the node at {to}")
            if says(node.world.node, pod, mine) is None:
                unheard.append(f"the node to {name} at {mine}")
    assert unheard == []
    status, error = node.cni(
        "CHECK", "a", str(pods["one"][0].path), mode="bridge", prevResult=pods["one"][1]
    )
    assert (status, error) == (0, None)


def test_frames_between_pods_do_not_pass_the_node(node: Node) -> None:
    """It is layer 2: the other pod's own MAC address is what a pod sends to."""
    (a, _), (b, second) = attach(node, "a"), attach(node, "b")
    for to in addresses(second):
        assert says(a, b, to)
        (entry,) = a.ip_json("neigh", "show", to)
        assert entry["lladdr"] == second["interfaces"][2]["mac"]


def test_second_interface_may_be_on_the_bridge(node: Node) -> None:
    pod = node.pod()
    node.add("multi", pod, mode="ptp")
    result = node.add("multi", pod, mode="bridge", interface="net1")
    assert result["routes"] == [], "the default route stays the first one's"
    other, theirs = attach(node, "b")
    for mine, to in zip(addresses(result), addresses(theirs), strict=True):
        assert says(other, pod, mine) == to
        assert says(pod, other, to, mine) == mine
        (way,) = pod.ip_json("route", "get", to, "from", mine)
        assert (way["dev"], way.get("gateway")) == ("net1", None), "its layer 2 is its own"
    for mine, to in zip(addresses(result), ("192.0.2.1", "2001:db8::1"), strict=True):
        assert says(pod, node.world.node, to, mine) == mine


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("addr flush dev eth0", "address 10.244."),
        ("link set eth0 down", "eth0 is down"),
        ("link set eth0 address 02:00:00:00:00:01", "has MAC 02:00:00:00:00:01"),
        ("route del default", "route 0.0.0.0/0 via 10.244."),
    ],
)
def test_check_finds_what_is_lost(node: Node, damage: str, named: str) -> None:
    pod, result = attach(node, "checked")
    pod.ip(*damage.split())
    status, error = node.cni("CHECK", "checked", str(pod.path), mode="bridge", prevResult=result)
    assert status == 1
    assert named in error["msg"]


class Forger:
    """A pod that sends frames as they are, and another that says what it learns from them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pod, mine = attach(node, "forger")
        self.victim, theirs = attach(node, "victim")
        self.listener, heard = attach(node, "listener")
        self.mine, self.theirs = addresses(mine), addresses(theirs)
        self.mac = mine["interfaces"][2]["mac"]
        self.victims_mac = theirs["interfaces"][2]["mac"]
        self.victims_link = theirs["interfaces"][1]["name"]
        assert says(self.victim, self.listener, addresses(heard)[0]), "its address is learnt"

    def send(self, *frames: bytes) -> None:
        def work() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                sender.bind(("eth0", 0))
                for each in frames:
                    sender.send(each)

        self.pod.call(work)

    def passed(self, forged: bytes) -> bool:
        """Return whether the listener gets a frame; an honest one behind it is waited for."""
        honest = frame(bytes.fromhex(self.mac.replace(":", "")), ip_address(self.mine[0]))

        def listen() -> bool:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer:
                sniffer.bind(("eth0", 3))
                sniffer.settimeout(DEADLINE_S)
                self.send(forged, honest)
                while True:
                    found = sniffer.recv(2048)
                    if found[: len(forged)] == forged:
                        return True
                    if found[: len(honest)] == honest:
                        return False

        return self.listener.call(listen)


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@pytest.fixture
def forger(node: Node) -> Forger:
    return Forger(node)


BROADCAST: Final = b"\xff" * 6


def ipv4(source: str) -> bytes:
    """Return a packet without content to everybody, whole: br_netfilter looks at its checksum."""
    ends = socket.inet_aton(source) + b"\xff" * 4
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 253, 0) + ends
    total = sum(struct.unpack("!10H", head))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return b"\x08\x00" + head[:10] + struct.pack("!H", checksum) + head[12:]


def test_honest_frames_pass(forger: Forger) -> None:
    mac = packed(forger.mac)
    assert forger.passed(BROADCAST + mac + ipv4(forger.mine[0]))
    assert forger.passed(frame(mac, ip_address(forger.mine[1])))
    assert forger.passed(frame(mac, link_local(parse_mac(forger.mac))))


@pytest.mark.parametrize(
    "kind",
    ["MAC", "IPv4", "ARP address", "ARP MAC", "NA", "NA target", "NA link-local", "RA", "unknown"],
)
def test_forged_frames_do_not_pass(forger: Forger, kind: str) -> None:
    mac, other = packed(forger.mac), packed(forger.victims_mac)
    v4, v6 = (ip_address(text) for text in forger.theirs)
    own6 = ip_address(forger.mine[1])
    advertised = frame(mac, v6)
    forged = {
        "MAC": BROADCAST + other + ipv4(forger.mine[0]),
        "IPv4": BROADCAST + mac + ipv4(str(v4)),
        "ARP address": frame(mac, v4),
        "ARP MAC": BROADCAST + mac + frame(other, ip_address(forger.mine[0]))[12:],
        "NA": advertised,
        # An honest source address over another's target: bytes 22 to 38 are the source.
        "NA target": advertised[:22] + own6.packed + advertised[38:],
        "NA link-local": frame(mac, link_local(parse_mac(forger.victims_mac))),
        "RA": advertised[:22] + own6.packed + advertised[38:54] + b"\x86" + advertised[55:],
        "unknown": BROADCAST + mac + b"\x88\xb5" + b"\0" * 46,
    }
    assert not forger.passed(forged[kind])
    table = forger.node.world.node.nft("list", "table", "bridge", "overlay")
    assert "counter packets 1 " in table, "and it is counted"


@pytest.mark.parametrize("last", [0, 1, 3, 14])
def test_bridge_learns_no_forged_address(forger: Forger, last: int) -> None:
    """Frames to 01:80:c2:00:00:0X are the bridge's own business: no rule for frames sees them."""
    group = bytes((0x01, 0x80, 0xC2, 0, 0, last))
    forged = group + packed(forger.victims_mac) + b"\x88\xcc" + b"\0" * 46
    assert not forger.passed(forged)  # an honest frame behind it was seen: it is done
    (entry,) = [
        line
        for line in forger.node.world.node.run("bridge", "fdb", "show", "br", BRIDGE).splitlines()
        if forger.victims_mac in line and "permanent" not in line
    ]
    assert forger.victims_link in entry


def test_pod_cannot_send_as_another_nor_as_the_gateway(forger: Forger) -> None:
    node = forger.node.world.node
    targets = ("192.0.2.1", "2001:db8::1")
    gateway = addresses({"ips": [{"address": g} for g in gateways_of(forger.node)]})
    for own, other, first, to in zip(forger.mine, forger.theirs, gateway, targets, strict=True):
        for forged in (other, first):
            options = ["nodad"] if ":" in own else []
            forger.pod.ip("addr", "add", forged, "dev", "eth0", *options)
            assert says(forger.pod, node, to, forged) is None
            forger.pod.ip("addr", "del", forged, "dev", "eth0")
        assert says(forger.pod, node, to, own) == own


def gateways_of(node: Node) -> list[str]:
    return [a["local"] for a in bridge_of(node)["addr_info"] if a["scope"] == "global"]


def test_router_advertisement_configures_no_pod(node: Node) -> None:
    """Not even the node's own, which no rule holds up."""
    (pod, _), (open_one, _) = attach(node, "a"), attach(node, "b")
    open_one.sysctl("net/ipv6/conf/eth0/accept_ra", 2)
    node.world.node.run("python3", "-c", ADVERTISE)
    eventually(lambda: "2001:db8:bad:" in open_one.ip("-6", "addr"), timeout_s=DEADLINE_S)
    assert "2001:db8:bad:" not in pod.ip("-6", "addr")


# A router advertisement with a prefix to make addresses of (RFC 4861, 4.2 and 4.6.2).
ADVERTISE: Final = f"""
import socket, struct
sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
head = bytes([134, 0, 0, 0, 64, 0]) + struct.pack("!HII", 1800, 0, 0)
prefix = bytes([3, 4, 64, 0xC0]) + struct.pack("!III", 3600, 3600, 0)
prefix += socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
sender.sendto(head + prefix, ("ff02::1", 0, 0, socket.if_nametoindex("{BRIDGE}")))
"""


# What waits for an audit is the agent's affair, whichever plugin made the pods.
one_form = pytest.mark.parametrize("node", ["python"], indirect=True)


@one_form
@pytest.mark.parametrize(
    "damage",
    [
        f"ip link del {BRIDGE}",
        f"ip link set {BRIDGE} down",
        f"ip addr flush dev {BRIDGE}",
        f"ip link set {BRIDGE} mtu 1000",
        f"ip link set {BRIDGE} address 02:00:00:00:00:77",
        "ip link set PORT nomaster",
        "nft flush ruleset",
        "nft delete table bridge overlay",
        "nft flush chain bridge overlay ov_source",
    ],
)
def test_what_somebody_takes_away_comes_back(node: Node, damage: str) -> None:
    (a, first), (b, second) = attach(node, "a"), attach(node, "b")
    routed, third = attach(node, "r", mode="ptp")
    rules = node.world.node.nft("--stateless", "list", "table", "bridge", "overlay")
    before = settled(node)
    words = damage.replace("PORT", first["interfaces"][1]["name"]).split()
    node.world.node.run(*words)
    eventually(
        lambda: settled(node) == before and is_table(node, rules),
        timeout_s=DEADLINE_S,
        what=f"repair after {damage}: {settled(node)}, want {before}",
    )
    for to, of_b in zip(addresses(second), addresses(third), strict=True):
        assert eventually(partial(says, a, b, to), timeout_s=DEADLINE_S)
        assert eventually(partial(says, b, routed, of_b), timeout_s=DEADLINE_S)


def settled(node: Node) -> str:
    try:
        bridge = bridge_of(node)
    except AssertionError:
        return ""
    ports = node.world.node.ip_json("link", "show", "master", BRIDGE)
    held = {
        "up": "UP" in bridge["flags"],
        **{key: bridge[key] for key in ("mtu", "address")},
        "addresses": [a["local"] for a in bridge["addr_info"] if a["scope"] == "global"],
        "ports": sorted((p["ifname"], p["linkinfo"]["info_slave_data"]["hairpin"]) for p in ports),
        "proxies": node.world.node.ip("-6", "neigh", "show", "proxy").split(),
    }
    return json.dumps(held, sort_keys=True)


def is_table(node: Node, rules: str) -> bool:
    found = node.world.node.nft("--stateless", "list", "table", "bridge", "overlay", check=False)
    return sorted(found.splitlines()) == sorted(rules.splitlines())


@one_form
def test_device_of_others_in_the_way_is_named_and_kept(node: Node) -> None:
    eventually(lambda: BRIDGE not in node.world.node.ip("link"), timeout_s=DEADLINE_S)
    node.world.node.ip("link", "add", BRIDGE, "type", "veth", "peer", "name", "foreign")
    pod = node.pod()
    status, error = node.cni("ADD", "a", str(pod.path), mode="bridge")
    node.world.node.ip("link", "del", BRIDGE)
    assert (status, error["code"]) == (1, 102)
    assert "opod-bridge exists, is a veth and is not ours" in error["msg"]
    assert "1 of" not in node.world.overlayctl("ipam", "list")


@one_form
def test_bridge_goes_with_the_last_pod_that_needs_it(node: Node) -> None:
    attach(node, "a")
    node.cni("DEL", "a", mode="bridge")
    eventually(lambda: BRIDGE not in node.world.node.ip("link"), timeout_s=DEADLINE_S)
    eventually(
        lambda: "table bridge" not in node.world.node.nft("list", "tables"), timeout_s=DEADLINE_S
    )


def test_address_that_moves_to_another_pod_is_found_there_at_once(node: Node) -> None:
    """Who spoke to the one that had it must not send to its MAC address for a minute more."""
    asker, _ = attach(node, "asker")
    _, probe = attach(node, "probe")
    wanted = {"ips": addresses(probe)}
    node.cni("DEL", "probe", mode="bridge")
    for number in range(2):
        pod, result = attach(node, f"holder{number}", runtimeConfig=wanted)
        assert addresses(result) == wanted["ips"]
        for to in wanted["ips"]:
            assert says(asker, pod, to), f"holder {number}"
            assert says(node.world.node, pod, to), f"holder {number}"
        node.cni("DEL", f"holder{number}", mode="bridge")


@pytest.mark.parametrize("mode", ["ptp", "bridge"])
def test_pod_reaches_itself_through_a_port_of_its_node(node: Node, mode: str) -> None:
    """A service that sends a pod back to itself: hairpin, with what portmap and kube-proxy set."""
    pod, result = attach(node, "self", mode=mode)
    host = node.world.node
    v4, v6 = addresses(result)
    host.nft(
        "-f",
        "-",
        stdin=f"""
        table inet ports {{
            chain in {{
                type nat hook prerouting priority dstnat; policy accept;
                ip daddr 192.0.2.1 udp dport 8080 dnat ip to {v4}:4343
                ip6 daddr 2001:db8::1 udp dport 8080 dnat ip6 to [{v6}]:4343
            }}
            chain out {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {v4} ip daddr {v4} masquerade
                ip6 saddr {v6} ip6 daddr {v6} masquerade
            }}
        }}""",
    )
    try:
        for family, own, to in (
            (socket.AF_INET, v4, "192.0.2.1"),
            (socket.AF_INET6, v6, "2001:db8::1"),
        ):
            with (
                pod.socket(family, socket.SOCK_DGRAM) as server,
                pod.socket(family, socket.SOCK_DGRAM) as client,
            ):
                for each in (server, client):
                    each.settimeout(DEADLINE_S)
                server.bind((own, 4343))
                client.connect((to, 8080))
                client.send(b"me")
                text, source = server.recvfrom(64)
                assert (text, source[0] == own) == (b"me", False)
                server.sendto(b"too", source)
                assert client.recv(64) == b"too"
    finally:
        host.nft("delete", "table", "inet", "ports")


@pytest.mark.parametrize("case", ["FORWARD drops", "isolated"])
def test_frames_pass_although_the_filter_sees_them(node: Node, case: str) -> None:
    """br_netfilter shows bridged frames to filters of routed packets, discovery among them."""
    host = node.world.node
    for name in ("iptables", "ip6tables"):
        assert host.sysctl(f"net/bridge/bridge-nf-call-{name}", 1) == "1"
    if case == "isolated":
        config = {**json.loads(CONFIG), "Egress": {"Mode": "isolated"}}
        node.world.put("config", json.dumps(config))
        awaited = ("ov_from_pod", lambda: host.nft("list", "ruleset"))
    else:
        for tool in ("iptables-nft", "ip6tables-nft"):
            host.run(tool, "-P", "FORWARD", "DROP")
        awaited = ("-i opod-bridge", lambda: host.run("ip6tables-nft", "-S"))
    try:
        eventually(lambda: awaited[0] in awaited[1](), timeout_s=DEADLINE_S)
        pods = [attach(node, "a"), attach(node, "b"), attach(node, "r", mode="ptp")]
        for pod, mine in pods:
            for other, theirs in pods:
                for own, to in zip(addresses(mine), addresses(theirs), strict=True):
                    assert pod is other or says(pod, other, to) == own
    finally:
        node.world.put("config", CONFIG)
        for family in ("ip", "ip6"):
            host.nft("delete", "table", family, "filter", check=False)
    eventually(lambda: "ov_from_pod" not in host.nft("list", "ruleset"), timeout_s=DEADLINE_S)


def test_agent_killed_and_back_keeps_the_bridge(node: Node) -> None:
    (a, first), (b, second) = attach(node, "a"), attach(node, "b")
    node.agent.process.kill()
    node.agent.process.wait(10)
    for to in addresses(second):
        assert says(a, b, to)
    node.world.node.run("nft", "delete", "table", "bridge", "overlay")
    node.agent = node.world.agent("--audit-interval=5s")
    node.agent.wait_ready()
    eventually(
        lambda: first["interfaces"][1]["name"] in node.world.node.nft("list", "ruleset"),
        timeout_s=DEADLINE_S,
    )
    third, _ = attach(node, "c")
    for to in addresses(second):
        assert says(third, b, to)


def test_reset_removes_bridge_and_rules(node: Node) -> None:
    pod, _ = attach(node, "last")
    node.agent.terminate()
    command = [str(BIN / "overlayctl"), "--socket", node.socket, "node", "reset", "--yes"]
    state = node.world.place / "state"
    told = node.world.node.run(*command, "--state-dir", str(state))
    assert f"link {BRIDGE}" in told
    assert "table bridge overlay" in told
    assert BRIDGE not in node.world.node.ip("link")
    assert node.world.node.nft("list", "tables") == ""
    assert "eth0" not in pod.ip("link")
    assert list(Path(state).iterdir()) == []
    node.agent = node.world.agent("--audit-interval=5s")
    node.agent.wait_ready()
