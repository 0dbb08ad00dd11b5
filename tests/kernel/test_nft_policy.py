"""What pods can and cannot send and receive, with real packets."""

import contextlib
import errno
import json
import socket
import struct
import threading
from collections.abc import Collection, Iterator
from functools import partial
from ipaddress import ip_address

import pytest

from overlay.kernel.nft_table import NftTable
from overlay.model.address import FAMILIES
from overlay.model.network import parse_network_config
from overlay.model.subnet import parse_subnet
from overlay.plan.backend import Tunnel
from overlay.policy.egress import FirewallPlan, compile_ruleset
from overlay.policy.ruleset import Ruleset, hosts
from tests.kernel.netns import MakeNetns, Netns, PodLine, eventually, veth

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

PORT, VNI = 8472, 7
SERVICE = 5000
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
both_families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
both_kinds = pytest.mark.parametrize(
    "kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"]
)


@pytest.fixture(scope="module")
def line(make_module_netns: MakeNetns) -> PodLine:
    line = PodLine(make_module_netns)
    # One answer a second to each asker would do for people, not for these tests.
    line.node.sysctl("net/ipv4/icmp_ratelimit", 0)
    line.node.sysctl("net/ipv6/icmp/ratelimit", 0)
    return line


def compiled(
    mode: str,
    *,
    direct: bool = False,
    nodes: Collection[str] = tuple(PodLine.PEER.values()),
    underlay: str = "up0",
    pod_devices: tuple[str, ...] = (),
) -> Ruleset:
    document = {
        "Network": "10.244.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00:1::/56",
        "Egress": {"Mode": mode, "NonMasqueradeCIDRs": ["198.51.100.0/24", "2001:db8:9::/64"]},
    }
    return compile_ruleset(
        FirewallPlan(
            own=parse_subnet("10.244.1.0/24,fd00:1:0:1::/64"),
            config=parse_network_config(json.dumps(document)),
            tunnel=Tunnel(PORT, VNI, dict.fromkeys(FAMILIES, "overlay.1")),
            nodes={f: hosts(map(ip_address, nodes), f) for f in FAMILIES},
            direct=direct,
            underlay=underlay,
            pod_devices=pod_devices,
        )
    )


def enforce(line: PodLine, mode: str, *, direct: bool = False) -> None:
    line.node.call(lambda: NftTable().apply(compiled(mode, direct=direct)))


@contextlib.contextmanager
def serving(netns: Netns, address: str, kind: int, port: int = SERVICE) -> Iterator[socket.socket]:
    with netns.socket(AF[ip_address(address).version], kind) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.settimeout(5)
        if kind == socket.SOCK_STREAM:
            server.listen(64)
        yield server


def seen_from(
    client: Netns, server: socket.socket, kind: int, *, source: str | None = None
) -> tuple[str, int]:
    """Return the address and port under which ``server`` sees ``client``, both ways working."""
    address = server.getsockname()
    with client.socket(server.family, kind) as sender:
        sender.settimeout(5)
        if source is not None:
            sender.bind((source, 0))
        sender.connect(address[:2])
        if kind == socket.SOCK_DGRAM:
            sender.send(b"hello")
            _, peer = server.recvfrom(100)
            server.sendto(b"answer", peer)
        else:
            accepted, peer = server.accept()
            with accepted:
                accepted.sendall(b"answer")
        assert sender.recv(100) == b"answer"
    return peer[0], peer[1]


def refusal(client: Netns, address: str, kind: int, port: int = SERVICE, source: str = "") -> int:
    """Return the error with which the network refuses a connection or datagram."""
    with client.socket(AF[ip_address(address).version], kind) as sender:
        sender.settimeout(3)
        if source:
            sender.bind((source, 0))
        try:
            sender.connect((address, port))
            sender.send(vxlan(VNI))
            sender.recv(100)
        except TimeoutError:
            return 0
        except OSError as exc:
            return exc.errno or 0
    msg = "it was not refused"
    raise AssertionError(msg)


def vxlan(vni: int) -> bytes:
    return struct.pack("!II", 0x08 << 24, vni << 8) + bytes(14)


PROHIBITED = {4: errno.EHOSTUNREACH, 6: errno.EACCES}


@both_families
@both_kinds
def test_island_hides_pods_behind_ports_that_avoid_the_tunnel(
    line: PodLine, version: int, kind: int
) -> None:
    enforce(line, "island")
    with serving(line.outside, PodLine.OUTSIDE[version], kind) as server:
        seen = [seen_from(line.pod, server, kind) for _ in range(40)]
    assert {address for address, _ in seen} == {PodLine.NODE[version]}
    assert all(PORT < port <= 65535 for _, port in seen)


def test_island_masquerades_a_source_port_that_is_the_tunnel_s(line: PodLine) -> None:
    enforce(line, "island")
    with (
        serving(line.outside, PodLine.OUTSIDE[4], socket.SOCK_DGRAM) as server,
        serving(line.pod, PodLine.POD[4], socket.SOCK_DGRAM, PORT) as sender,
    ):
        sender.sendto(b"x", (PodLine.OUTSIDE[4], SERVICE))
        _, (address, port) = server.recvfrom(100)
        assert (address, port > PORT) == (PodLine.NODE[4], True)
        server.sendto(b"answer", (address, port))
        assert sender.recv(100) == b"answer"


@both_families
def test_island_masquerades_echo_requests(line: PodLine, version: int) -> None:
    enforce(line, "island")
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    body = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, 77, 1)
    if version == 4:  # the kernel fills in ICMPv6's checksum alone
        body = body[:2] + struct.pack("!H", 0xFFFF - sum(struct.unpack("!4H", body))) + body[4:]
    with (
        line.outside.socket(AF[version], socket.SOCK_RAW, protocol) as far,
        line.pod.socket(AF[version], socket.SOCK_RAW, protocol) as near,
    ):
        far.settimeout(5)
        near.settimeout(5)
        near.sendto(body, (PodLine.OUTSIDE[version], 0))
        while True:
            data, sender = far.recvfrom(2000)
            if data[20 if version == 4 else 0] == body[0]:
                break
        assert sender[0] == PodLine.NODE[version]
        while True:
            data, sender = near.recvfrom(2000)
            if data[20 if version == 4 else 0] == (0 if version == 4 else 129):
                break
        assert sender[0] == PodLine.OUTSIDE[version]


@both_families
@both_kinds
@pytest.mark.parametrize(
    "target", [PodLine.KEEP, PodLine.PEER, PodLine.REMOTE_POD], ids=["keep", "node", "pod"]
)
def test_island_keeps_the_pod_s_address_inside(
    line: PodLine, version: int, kind: int, target: dict[int, str]
) -> None:
    enforce(line, "island")
    with serving(line.outside, target[version], kind) as server:
        assert seen_from(line.pod, server, kind)[0] == PodLine.POD[version]


@both_families
@both_kinds
def test_flat_keeps_the_pod_s_address(line: PodLine, version: int, kind: int) -> None:
    enforce(line, "flat")
    with serving(line.outside, PodLine.OUTSIDE[version], kind) as server:
        assert seen_from(line.pod, server, kind)[0] == PodLine.POD[version]
    with serving(line.pod, PodLine.POD[version], kind) as server:
        seen = seen_from(line.outside, server, kind, source=PodLine.OUTSIDE[version])
        assert seen[0] == PodLine.OUTSIDE[version]


@both_families
@both_kinds
@pytest.mark.parametrize("target", [PodLine.OUTSIDE, PodLine.KEEP], ids=["outside", "keep"])
def test_isolated_pod_is_refused_at_once(
    line: PodLine, version: int, kind: int, target: dict[int, str]
) -> None:
    enforce(line, "isolated")
    with serving(line.outside, target[version], kind):
        assert refusal(line.pod, target[version], kind) == PROHIBITED[version]


@both_families
@both_kinds
def test_isolated_pod_is_out_of_reach_for_the_outside(
    line: PodLine, version: int, kind: int
) -> None:
    enforce(line, "isolated")
    with serving(line.pod, PodLine.POD[version], kind) as server:
        refused = refusal(line.outside, PodLine.POD[version], kind, source=PodLine.OUTSIDE[version])
        assert refused == PROHIBITED[version]
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept() if kind == socket.SOCK_STREAM else server.recvfrom(100)


@both_families
@both_kinds
@pytest.mark.parametrize("peer", [PodLine.PEER, PodLine.REMOTE_POD], ids=["node", "pod"])
def test_isolated_pod_speaks_with_nodes_and_pods(
    line: PodLine, version: int, kind: int, peer: dict[int, str]
) -> None:
    enforce(line, "isolated")
    with serving(line.outside, peer[version], kind) as server:
        assert seen_from(line.pod, server, kind)[0] == PodLine.POD[version]
    with serving(line.pod, PodLine.POD[version], kind) as server:
        seen = seen_from(line.outside, server, kind, source=peer[version])
        assert seen[0] == peer[version]
    with serving(line.node, PodLine.NODE[version], kind) as server:
        assert seen_from(line.pod, server, kind)[0] == PodLine.POD[version]


@both_families
@both_kinds
def test_isolated_pods_of_one_node_speak_through_whatever_device(
    make_netns: MakeNetns, version: int, kind: int
) -> None:
    """The second pod sits behind a device that is not named like ours."""
    line, second = PodLine(make_netns), make_netns()
    veth(line.node, "bridge0", second, "eth0")
    for mine, pod, prefix, gateway, net in (
        ("10.244.1.129/25", "10.244.1.130/25", "10.244.1.128/25", "10.244.1.1", "10.244.1.129"),
        (
            "fd00:1:0:1:8000::1/65",
            "fd00:1:0:1:8000::2/65",
            "fd00:1:0:1:8000::/65",
            "fd00:1:0:1::1",
            "fd00:1:0:1:8000::1",
        ),
    ):
        line.node.ip("addr", "add", mine, "dev", "bridge0")
        second.ip("addr", "add", pod, "dev", "eth0")
        second.ip("route", "add", "default", "via", net)
        line.pod.ip("route", "add", prefix, "via", gateway)
    enforce(line, "isolated")
    other = {4: "10.244.1.130", 6: "fd00:1:0:1:8000::2"}[version]
    with serving(second, other, kind) as server:
        assert seen_from(line.pod, server, kind)[0] == PodLine.POD[version]
    with serving(line.pod, PodLine.POD[version], kind) as server:
        assert seen_from(second, server, kind)[0] == other
    assert refusal(second, PodLine.OUTSIDE[version], kind) == PROHIBITED[version]


@both_families
@pytest.mark.parametrize("forged", ["remote pod", "own subnet"])
def test_isolated_pod_takes_no_forged_pod_address_from_the_underlay(
    line: PodLine, version: int, forged: str
) -> None:
    """Only the last datagram arrives: it has a node's address."""
    source = {
        "remote pod": {4: "10.244.3.9", 6: "fd00:1:0:3::9"},
        "own subnet": {4: "10.244.1.9", 6: "fd00:1:0:1::9"},
    }[forged][version]
    prefix = f"{source}/{32 if version == 4 else 128}"
    enforce(line, "isolated")
    line.outside.ip("addr", "add", prefix, "dev", "lo")
    try:
        with (
            serving(line.pod, PodLine.POD[version], socket.SOCK_DGRAM) as server,
            line.outside.socket(AF[version], socket.SOCK_DGRAM) as liar,
            line.outside.socket(AF[version], socket.SOCK_DGRAM) as honest,
        ):
            liar.bind((source, 0))
            liar.sendto(b"forged", server.getsockname()[:2])
            honest.bind((PodLine.PEER[version], 0))
            honest.sendto(b"honest", server.getsockname()[:2])
            assert server.recv(100) == b"honest"
            if forged == "remote pod":
                # Where peers are reached directly the underlay carries pods' addresses.
                enforce(line, "isolated", direct=True)
                liar.sendto(b"direct", server.getsockname()[:2])
                assert server.recv(100) == b"direct"
    finally:
        line.outside.ip("addr", "del", prefix, "dev", "lo")


@both_families
@pytest.mark.parametrize("mode", ["island", "isolated", "flat"])
@pytest.mark.parametrize("underlay", ["up0", "eth7"], ids=["the underlay", "another way in"])
def test_tunnel_packets_come_from_peers_alone(
    line: PodLine, version: int, mode: str, underlay: str
) -> None:
    line.node.call(partial(NftTable().apply, compiled(mode, underlay=underlay)))
    target = (PodLine.NODE[version], PORT)
    with (
        serving(line.node, PodLine.NODE[version], socket.SOCK_DGRAM, PORT) as vtep,
        line.outside.socket(AF[version], socket.SOCK_DGRAM) as stranger,
        line.outside.socket(AF[version], socket.SOCK_DGRAM) as peer,
    ):
        stranger.bind((PodLine.OUTSIDE[version], 0))
        peer.bind((PodLine.PEER[version], 0))
        stranger.sendto(vxlan(VNI), target)
        stranger.sendto(vxlan(VNI + 1), target)
        peer.sendto(vxlan(VNI), target)
        assert vtep.recvfrom(100)[0] == vxlan(VNI + 1)
        data, sender = vtep.recvfrom(100)
        assert (data, sender[0]) == (vxlan(VNI), PodLine.PEER[version])
    (dropped,) = [r for r in line.node.nft("list", "ruleset").splitlines() if "no peer" in r]
    assert "counter packets 1 " in dropped


@both_families
@pytest.mark.parametrize("mode", ["island", "isolated", "flat"])
@pytest.mark.parametrize(
    "target",
    [PodLine.OUTSIDE, PodLine.PEER, PodLine.REMOTE_POD, PodLine.NODE],
    ids=["outside", "node", "pod", "own node"],
)
def test_pod_cannot_speak_to_a_tunnel(
    line: PodLine, version: int, mode: str, target: dict[int, str]
) -> None:
    enforce(line, mode)
    at = line.node if target is PodLine.NODE else line.outside
    with serving(at, target[version], socket.SOCK_DGRAM, PORT) as server:
        refused = refusal(line.pod, target[version], socket.SOCK_DGRAM, PORT)
        assert refused == PROHIBITED[version]
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recvfrom(100)


@both_families
@pytest.mark.parametrize("device", ["inner", "bridge0"], ids=["in the tunnel", "a foreign pod"])
def test_peer_s_address_lets_nobody_in_who_is_not_on_the_underlay(
    make_netns: MakeNetns, version: int, device: str
) -> None:
    """Nobody checks sources of what comes in a tunnel, or from a bridge of another plugin's."""
    line = PodLine(make_netns)
    veth(line.node, "bridge0", line.outside, "bridge0")
    at = {4: ("10.244.1.129", "25"), 6: ("fd00:1:0:1:8000::1", "65")}[version]
    if device == "bridge0":
        line.node.ip("addr", "add", "/".join(at), "dev", "bridge0")
        line.outside.ip("route", "replace", at[0], "dev", "bridge0")
    else:
        at = ({4: "10.244.2.1", 6: "fd00:1:0:2::1"}[version], "")
    ruleset = compiled("island", pod_devices=("bridge0",))
    line.node.call(partial(NftTable().apply, ruleset))
    with (
        serving(line.node, at[0], socket.SOCK_DGRAM, PORT) as vtep,
        line.outside.socket(AF[version], socket.SOCK_DGRAM) as liar,
    ):
        liar.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        liar.bind((PodLine.PEER[version], 0))
        liar.sendto(vxlan(VNI), (at[0], PORT))
        comment = "in a tunnel" if device == "inner" else "a pod to the tunnel port"

        def stopped() -> bool:
            rules = line.node.nft("list", "ruleset").splitlines()
            return any(comment in rule and "packets 0 " not in rule for rule in rules)

        eventually(stopped, what="the rule that stops it")
        vtep.setblocking(False)
        with pytest.raises(BlockingIOError):
            vtep.recvfrom(100)


# As overlayd wrote it before peers' packets had a way in of their own.
EARLIER = """\
	chain ov_source {
		type filter hook prerouting priority filter - 10; policy accept;
		iifname != "opod*" return
		ip6 saddr { ::, fe80::/10 } return
		fib saddr . iif oif missing counter drop comment "a source address, forged"
	}
	chain ov_guard {
		iifname "opod*" counter reject with icmpx admin-prohibited
		ip saddr @ov_own4 counter reject with icmpx admin-prohibited
		ip6 saddr @ov_own6 counter reject with icmpx admin-prohibited
	}
	chain ov_tunnel {
		iifname "overlay.1" counter drop comment "tunnel packets in a tunnel"
		ip saddr @ov_nodes4 accept
		ip6 saddr @ov_nodes6 accept
		counter drop comment "tunnel packets from no peer"
	}
	chain ov_input {
		type filter hook input priority filter - 10; policy accept;
		udp dport 8472 jump ov_guard
		udp dport 8472 @th,96,24 0x7 goto ov_tunnel
	}
"""


def test_upgrade_from_the_earlier_table_lets_nobody_in_and_keeps_no_peer_out(line: PodLine) -> None:
    later = compiled("island")
    earlier = Ruleset(later.sets, EARLIER)
    sent = 0
    got: list[tuple[bytes, str]] = []
    stop = threading.Event()
    with (
        serving(line.node, PodLine.NODE[4], socket.SOCK_DGRAM, PORT) as vtep,
        line.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        line.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        peer.bind((PodLine.PEER[4], 0))
        stranger.bind((PodLine.OUTSIDE[4], 0))
        table = NftTable()
        line.node.call(partial(table.apply, earlier))

        def talk() -> None:
            nonlocal sent
            while not stop.is_set():
                for each in (peer, stranger):
                    each.sendto(vxlan(VNI), (PodLine.NODE[4], PORT))
                got.append(vtep.recvfrom(100))
                sent += 1

        talking = threading.Thread(target=talk)
        talking.start()
        try:
            for ruleset in (later, earlier) * 20:
                line.node.call(partial(table.apply, ruleset))
        finally:
            stop.set()
            talking.join(10)
        assert not talking.is_alive()
        vtep.setblocking(False)
        with pytest.raises(BlockingIOError):
            vtep.recvfrom(100)
    assert sent > 40, "packets were under way between the changes"
    assert {address[0] for _, address in got} == {PodLine.PEER[4]}


def test_real_vxlan_devices_are_told_apart_by_vni(make_netns: MakeNetns) -> None:
    """One is ours, one somebody else's, both on one port; only ours asks who is a peer."""
    node, peer = make_netns(), make_netns()
    veth(node, "up0", peer, "up0")
    for netns, own, other in ((node, "1", "2"), (peer, "2", "1")):
        netns.ip("addr", "add", f"192.0.2.{own}/24", "dev", "up0")
        for vni in (VNI, VNI + 1):
            device, prefix = f"vx.{vni}", f"10.0.{vni}"
            netns.ip(
                "link", "add", device, "type", "vxlan", "id", str(vni), "dstport", str(PORT),
                "local", f"192.0.2.{own}", "remote", f"192.0.2.{other}", "dev", "up0",
            )  # fmt: skip
            netns.ip("addr", "add", f"{prefix}.{own}/24", "dev", device)
            netns.ip("link", "set", device, "up")

    def arrives(vni: int) -> bool:
        with (
            serving(node, f"10.0.{vni}.1", socket.SOCK_DGRAM) as server,
            peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            server.settimeout(0.2)
            sender.sendto(b"x", (f"10.0.{vni}.1", SERVICE))
            with contextlib.suppress(TimeoutError):
                return server.recv(10) == b"x"
        return False

    for nodes, ours in (({"192.0.2.2"}, True), (set[str](), False), ({"192.0.2.2"}, True)):
        ruleset = compiled("island", nodes=nodes)
        node.call(partial(NftTable().apply, ruleset))
        eventually(lambda: arrives(VNI + 1), what="the other fabric's datagram")
        if ours:
            eventually(lambda: arrives(VNI), what="a peer's datagram")
        else:
            assert not arrives(VNI)
