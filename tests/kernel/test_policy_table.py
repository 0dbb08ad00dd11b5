"""The table of network policies in the kernel: changed step by step, and judging packets."""

import json
import socket
import struct
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from overlay.model.netpol import (
    EVERYTHING,
    BlockPeer,
    NamedPort,
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    PortMatch,
    Protocol,
    Requirement,
    Rule,
    Selector,
    World,
)
from overlay.policy.network.compile import CompileOptions, PolicyCompiler, compile_policies
from overlay.policy.network.listed import difference
from overlay.policy.network.render import LogOptions
from overlay.policy.network.table import POLICY_TABLE, PolicyRuleset
from tests.kernel.netns import MakeNetns, Netns, eventually, veth
from tests.unit.policy_worlds import successors, worlds

pytestmark = pytest.mark.kernel

OPTIONS = CompileOptions(frozenset({"y"}), admin_tier=True, log=LogOptions(7))


@pytest.fixture(scope="module")
def two(make_module_netns: MakeNetns) -> tuple[Netns, Netns]:
    return make_module_netns(), make_module_netns()


def listing(netns: Netns) -> list[str]:
    """Return what the table holds, in an order of its own, counters and handles left out."""
    found = json.loads(netns.nft("-j", "list", "table", *POLICY_TABLE.split()))["nftables"]
    rules: dict[str, list[Any]] = {}
    rest: list[str] = []
    for each in found:
        ((kind, body),) = each.items()
        if kind == "rule":
            rules.setdefault(body["chain"], []).append(body["expr"])
        elif kind != "metainfo":
            for word in ("handle", "packets", "bytes"):
                body.pop(word, None)
            body["elem"] = sorted(json.dumps(element) for element in body.get("elem", []))
            rest.append(json.dumps(each, sort_keys=True))
    rest += [f"{chain}: {json.dumps(expr)}" for chain, expr in rules.items()]
    return sorted(rest)


@settings(
    deadline=None,
    max_examples=25,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_changes_lead_where_the_whole_table_leads(
    two: tuple[Netns, Netns], data: st.DataObject
) -> None:
    changed, whole = two
    world = data.draw(worlds())
    compiler = PolicyCompiler("n1", OPTIONS)
    last = compiler.update(world)
    changed.nft("-f", "-", stdin=last.transaction)
    for _ in range(3):
        world = data.draw(successors(world))
        new = compiler.update(world)
        delta = new.delta(last)
        assert delta is not None
        changed.nft("-f", "-", stdin=delta)
        whole.nft("-f", "-", stdin=new.transaction)
        assert listing(changed) == listing(whole)
        text = changed.nft("--stateless", "list", "table", *POLICY_TABLE.split())
        assert difference(new, text) is None
        last = new


A, B, C = "10.244.1.1", "10.244.1.2", "10.244.1.3"
ADDRESSES = {
    4: {name: f"10.244.1.{n}" for n, name in enumerate("abc", 1)},
    6: {name: f"fd00:1::{n}" for n, name in enumerate("abc", 1)},
}
GATEWAY = {4: "10.244.9.1", 6: "fd00:9::1"}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass
class Node:
    """A node that routes for three pods, each on a link of its own."""

    netns: Netns
    pods: dict[str, Netns]
    ruleset: PolicyRuleset

    def enforce(self, world: World, options: CompileOptions = OPTIONS, **unknown: Any) -> None:
        self.ruleset = compile_policies(world, "n1", options, **unknown)
        self.netns.nft("-f", "-", stdin=self.ruleset.transaction)

    def refused(self) -> int:
        """Return how many packets the table refused, or would have."""
        found = json.loads(self.netns.nft("-j", "list", "counters", "table", *POLICY_TABLE.split()))
        return sum(each["counter"]["packets"] for each in found["nftables"] if "counter" in each)

    def passes(self, source: Netns, target: Netns, address: str, port: int) -> bool:
        """Return whether a datagram arrives; it does or it is counted as refused."""
        version = ip_address(address).version
        before = self.refused()
        with (
            target.socket(_FAMILY[version], socket.SOCK_DGRAM) as server,
            source.socket(_FAMILY[version], socket.SOCK_DGRAM) as client,
        ):
            server.bind((address, port))
            server.setblocking(False)
            client.sendto(b"x", (address, port))
            return self._arrival(server, before)

    def pings(self, source: Netns, address: str) -> bool:
        """Return whether an echo is answered; it is or it is counted as refused."""
        before = self.refused()
        is_v6 = ip_address(address).version == 6
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        protocol = socket.IPPROTO_ICMPV6 if is_v6 else socket.IPPROTO_ICMP
        with source.socket(family, socket.SOCK_RAW, protocol) as client:
            client.setblocking(False)
            body = struct.pack("!HHHHH", 8 << 8, 0, 1, 1, 0)
            if not is_v6:
                client.sendto(body[:2] + struct.pack("!H", 0xF7FD) + body[4:], (address, 0))
                return self._arrival(client, before)
            client.sendto(struct.pack("!BBHHHH", 128, 0, 0, 1, 1, 0), (address, 0))
            return self._arrival(client, before, first=129)

    def _arrival(self, at: socket.socket, before: int, first: int | None = None) -> bool:
        def outcome() -> str:
            try:
                data = at.recv(2048)
            except BlockingIOError:
                return "refused" if self.refused() > before else ""
            return "arrived" if first is None or data[0] == first else ""

        return eventually(outcome, timeout_s=20, what="a packet's fate") == "arrived"

    def connects(self, source: Netns, target: Netns, address: str, port: int) -> bool:
        """Return whether a TCP connection comes to be, and is answered through it."""
        version = ip_address(address).version
        before = self.refused()
        with (
            target.socket(_FAMILY[version], socket.SOCK_STREAM) as server,
            source.socket(_FAMILY[version], socket.SOCK_STREAM) as client,
        ):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen(1)
            server.setblocking(False)
            client.setblocking(False)
            client.connect_ex((address, port))

            def outcome() -> str:
                try:
                    peer, _ = server.accept()
                except BlockingIOError:
                    return "refused" if self.refused() > before else ""
                with peer:
                    peer.sendall(b"welcome")
                    client.setblocking(True)
                    client.settimeout(20)
                    return "arrived" if client.recv(7) == b"welcome" else ""

            return eventually(outcome, timeout_s=20, what="a connection's fate") == "arrived"


@pytest.fixture(scope="module")
def node(make_module_netns: MakeNetns) -> Node:
    netns = make_module_netns()
    pods: dict[str, Netns] = {}
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        netns.sysctl(name, 1)
    for name in "abc":
        pod = pods[name] = make_module_netns()
        veth(netns, f"opod{name}", pod, "eth0")
        for version, length in ((4, 32), (6, 128)):
            flag = "-6" if version == 6 else "-4"
            address, gateway = ADDRESSES[version][name], GATEWAY[version]
            extra = ["nodad"] if version == 6 else []
            netns.ip("addr", "add", f"{gateway}/{length}", "dev", f"opod{name}", *extra)
            netns.ip(flag, "route", "add", f"{address}/{length}", "dev", f"opod{name}")
            pod.ip("addr", "add", f"{address}/{length}", "dev", "eth0", *extra)
            pod.ip(flag, "route", "add", f"{gateway}/{length}", "dev", "eth0")
            pod.ip(flag, "route", "add", "default", "via", gateway, "dev", "eth0")
    return Node(netns, pods, PolicyRuleset())


def app(name: str) -> Selector:
    return Selector((Requirement("app", Operator.IN, frozenset({name})),))


def world(*policies: NetworkPolicy) -> World:
    """Return pods a, b and c with labels of their names, in namespace x of node n1."""
    pods = [
        Pod(
            "x",
            name,
            frozenset(ip_address(ADDRESSES[version][name]) for version in (4, 6)),
            {"app": name},
            "n1",
            (NamedPort("web", 8000, Protocol.UDP),),
        )
        for name in "abc"
    ]
    return World({pod.key: pod for pod in pods}, {}, {each.key: each for each in policies})


FROM_A_ON_80 = Rule((PodPeer(app("a")),), (PortMatch(Protocol.UDP, 80), PortMatch(port=80)))


@pytest.mark.parametrize("version", [4, 6])
def test_ingress_lets_in_what_a_rule_allows_and_replies_out(node: Node, version: int) -> None:
    node.enforce(world(NetworkPolicy("x", "p", app("b"), ingress=(FROM_A_ON_80,))))
    a, b, c = (node.pods[name] for name in "abc")
    address = ADDRESSES[version]["b"]
    assert node.passes(a, b, address, 80)
    assert node.connects(a, b, address, 80)
    assert not node.passes(a, b, address, 81)
    assert not node.connects(a, b, address, 81)
    assert not node.passes(c, b, address, 80)
    assert not node.pings(a, address)
    assert node.passes(b, c, ADDRESSES[version]["c"], 80), "ingress alone was isolated"


@pytest.mark.parametrize("version", [4, 6])
def test_both_ends_must_allow(node: Node, version: int) -> None:
    ingress = NetworkPolicy("x", "in", app("b"), ingress=(FROM_A_ON_80,))
    to_b = Rule((PodPeer(app("b")),), (PortMatch(Protocol.UDP, 80, 90),))
    egress = NetworkPolicy("x", "out", app("a"), egress=(to_b,))
    node.enforce(world(ingress, egress))
    a, b, c = (node.pods[name] for name in "abc")
    address = ADDRESSES[version]["b"]
    assert node.passes(a, b, address, 80)
    assert not node.passes(a, b, address, 85), "egress allows, ingress does not"
    assert not node.connects(a, b, address, 80), "ingress allows, egress does not"
    assert not node.passes(a, c, ADDRESSES[version]["c"], 80), "egress alone is asked"


@pytest.mark.parametrize("version", [4, 6])
def test_names_of_ports_blocks_and_rules_without_ports(node: Node, version: int) -> None:
    block = BlockPeer(
        ip_network("10.244.1.0/24" if version == 4 else "fd00:1::/64"),
        (ip_network(f"{ADDRESSES[version]['c']}/{32 if version == 4 else 128}"),),
    )
    rules = (
        Rule((block,), (PortMatch(Protocol.UDP, "web"), PortMatch(Protocol.UDP, 7000, 7010))),
        Rule(None, (PortMatch(Protocol.UDP, 53),)),
    )
    node.enforce(
        world(
            NetworkPolicy("x", "p", app("b"), ingress=rules),
            NetworkPolicy("x", "open", app("c"), ingress=(Rule((PodPeer(),)),)),
        )
    )
    a, b, c = (node.pods[name] for name in "abc")
    address = ADDRESSES[version]["b"]
    assert node.passes(a, b, address, 8000)
    assert node.passes(a, b, address, 7010)
    assert not node.passes(a, b, address, 7011)
    assert not node.passes(c, b, address, 8000), "it is in a hole"
    assert node.passes(c, b, address, 53), "everybody may"
    assert node.pings(a, ADDRESSES[version]["c"]), "a rule without ports is any protocol"


@pytest.mark.parametrize("version", [4, 6])
def test_the_node_reaches_its_pods_and_is_a_destination_to_them(node: Node, version: int) -> None:
    deny = NetworkPolicy("x", "deny", EVERYTHING, ingress=(), egress=())
    a = node.pods["a"]
    own, gateway = ADDRESSES[version]["a"], GATEWAY[version]
    node.enforce(world(deny))
    assert node.passes(node.netns, a, own, 80)
    assert node.connects(node.netns, a, own, 80), "answers come back through the input hook"
    assert not node.passes(a, node.netns, gateway, 80)
    block = Rule((BlockPeer(ip_network(gateway)),), (PortMatch(Protocol.UDP, 80),))
    node.enforce(world(deny, NetworkPolicy("x", "dns", EVERYTHING, egress=(block,))))
    assert node.passes(a, node.netns, gateway, 80)
    assert not node.passes(a, node.netns, gateway, 81)


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_reaches_itself_through_the_node(node: Node, version: int) -> None:
    """As through a Service: the node turns the destination back and hides the source later."""
    a, own = node.pods["a"], ADDRESSES[version]["a"]
    service = "10.96.0.1" if version == 4 else "fd00:96::1"
    family = "ip" if version == 4 else "ip6"
    node.netns.nft(
        "-f",
        "-",
        stdin=f"table {family} turn {{\n"
        "chain pre {\ntype nat hook prerouting priority dstnat\n"
        f"{family} daddr {service} dnat to {own}\n}}\n"
        "chain post {\ntype nat hook postrouting priority srcnat\n"
        f"{family} saddr {own} {family} daddr {own} masquerade\n}}\n}}\n",
    )
    node.enforce(world(NetworkPolicy("x", "deny", EVERYTHING, ingress=(), egress=())))
    before = node.refused()
    with (
        a.socket(_FAMILY[version], socket.SOCK_DGRAM) as server,
        a.socket(_FAMILY[version], socket.SOCK_DGRAM) as client,
    ):
        server.bind((own, 80))
        server.settimeout(20)
        client.sendto(b"x", (service, 80))
        assert server.recv(1) == b"x"
    assert node.refused() == before
    node.netns.nft("delete", "table", family, "turn")


def test_audit_counts_and_lets_pass(node: Node) -> None:
    deny = world(NetworkPolicy("x", "deny", EVERYTHING, ingress=(), egress=()))
    node.enforce(deny, replace(OPTIONS, audited=frozenset({"x"})))
    assert node.refused() == 0
    a, b = node.pods["a"], node.pods["b"]
    with (
        b.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        a.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((B, 80))
        server.settimeout(20)
        client.sendto(b"x", (B, 80))
        assert server.recv(1) == b"x"
    assert node.refused() == 2, "once where it left, once where it arrived"


def test_pods_that_nobody_knows_yet_speak_with_the_node_alone(node: Node) -> None:
    node.enforce(World(), unknown=frozenset({ip_address(A), ip_address("fd00:1::1")}))
    a, b = node.pods["a"], node.pods["b"]
    for version in (4, 6):
        assert not node.passes(a, b, ADDRESSES[version]["b"], 80)
        assert not node.passes(b, a, ADDRESSES[version]["a"], 80)
        assert node.passes(node.netns, a, ADDRESSES[version]["a"], 80)
    node.enforce(World())
    assert node.passes(a, b, B, 80)


def test_an_error_that_a_packet_causes_comes_back(node: Node) -> None:
    """A closed port answers with ICMP, which no rule names."""
    only_b = NetworkPolicy("x", "p", app("b"), (FROM_A_ON_80,), ())
    node.enforce(world(only_b))
    with node.pods["a"].socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((B, 80))
        client.settimeout(20)
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


def test_what_leaves_the_node_with_another_address_is_judged(node: Node) -> None:
    """As IPVS sends a pod's packets on: from the node's output, with the pod's own address."""
    node.enforce(world(NetworkPolicy("x", "p", app("b"), ingress=(FROM_A_ON_80,))))
    b = node.pods["b"]
    before = node.refused()
    with (
        b.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        node.netns.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender,
    ):
        server.bind((B, 80))
        server.settimeout(20)
        with pytest.raises(PermissionError):  # what is dropped at output tells its sender
            sender.sendto(datagram(C, B, 80, b"c"), (B, 0))
        sender.sendto(datagram(A, B, 80, b"a"), (B, 0))
        assert server.recv(1) == b"a"
    assert node.refused() == before + 1


def datagram(source: str, target: str, port: int, data: bytes) -> bytes:
    """Return an IPv4 packet; the kernel fills in what is zero."""
    ends = ip_address(source).packed + ip_address(target).packed
    udp = struct.pack("!HHHH", 40000, port, 8 + len(data), 0) + data
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends + udp
