"""Pods' interfaces on the kernel: what attach makes, what faults finds, and nothing half done."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

import pytest

from overlay.kernel import pods
from overlay.kernel.base import KernelError
from overlay.kernel.netns import namespace_of, own_namespace
from overlay.kernel.pod_faults import Expected, faults
from overlay.kernel.pod_gateway import GATEWAY
from overlay.kernel.pod_namespace import PodNamespace
from overlay.kernel.pods import InterfaceExistsError, PodLink, link_mac
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import FAMILIES, Family, MacAddress
from overlay.model.attachment import AttachmentKey
from tests.kernel.netns import MakeNetns, Netns
from tests.kernel.rights import NET_ADMIN, NET_RAW, handed_over, keep_capabilities

pytestmark = pytest.mark.kernel

T = TypeVar("T")
V4, V6 = "10.1.0.2", "fd00::2"
GATEWAYS = {V4: "169.254.1.1", V6: "fe80::1"}
FAMILY_SETS = [
    pytest.param((V4,), id="IPv4"),
    pytest.param((V6,), id="IPv6"),
    pytest.param((V4, V6), id="both"),
]


def link(*addresses: str, interface: str = "eth0", number: int = 1) -> PodLink:
    name = f"opod{number}"
    macs = link_mac(name, "pod"), link_mac(name, "host")
    return PodLink(interface, name, *macs, 1430, tuple(map(ip_address, addresses)))


class Pair:
    """A node, and a pod on it; with ``enters`` an agent may work inside, else as in a container."""

    def __init__(self, make: MakeNetns, *, enters: bool) -> None:
        self.node, self.pod = make(), make()
        self._enters = enters

    def work(self, function: Callable[[RtnlSocket, PodNamespace], T]) -> T:
        """Return what ``function`` returns in the node, with the pod's namespace."""

        def inside() -> T:
            home = own_namespace()
            with handed_over(self.pod, is_whole=not self._enters) as pod:
                if not self._enters:
                    keep_capabilities(NET_ADMIN, NET_RAW)
                with RtnlSocket() as rtnl:
                    found = function(rtnl, pod)
            assert own_namespace() == home, "the thread came home"
            return found

        return self.node.call(inside)

    def attach(self, wanted: PodLink, *beside: PodLink) -> None:
        self.work(lambda rtnl, netns: pods.attach(rtnl, netns, wanted, beside))

    def detach(self, name: str) -> bool:
        return self.work(lambda _rtnl, _netns: pods.detach(name))

    def faults(self, wanted: PodLink) -> list[str]:
        families = {Family(a.version) for a in wanted.addresses}
        default = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
        routes = tuple((ip_network(default[f]), GATEWAY[f]) for f in FAMILIES if f in families)
        expected = Expected(
            wanted.interface, wanted.host_interface, wanted.mac, wanted.addresses, routes
        )
        return self.work(lambda rtnl, netns: faults(rtnl, netns, expected))

    def state(self) -> list[str]:
        """Return links, addresses, routes and neighbors of both, as text."""
        return [
            f"{netns.name}: {line}"
            for netns in (self.node, self.pod)
            for words in (
                ("-br", "link"),
                ("-br", "addr"),
                ("-4", "route", "show", "table", "all"),
                ("-6", "route", "show", "table", "all"),
                ("neigh", "show"),
            )
            for line in netns.ip(*words).splitlines()
        ]


@pytest.fixture(params=[True, False], ids=["enters", "as in a container"])
def pair(make_netns: MakeNetns, request: pytest.FixtureRequest) -> Pair:
    return Pair(make_netns, enters=request.param)


def only(netns: Netns, name: str) -> Any:
    (found,) = netns.ip_json("addr", "show", "dev", name)
    return found


@pytest.mark.parametrize("addresses", FAMILY_SETS)
def test_attached_pod_is_wired_point_to_point(pair: Pair, addresses: tuple[str, ...]) -> None:
    wanted = link(*addresses)
    pair.attach(wanted)
    host, pod = only(pair.node, "opod1"), only(pair.pod, "eth0")
    for end, mac in ((host, wanted.host_mac), (pod, wanted.mac)):
        assert (end["address"], end["mtu"], end["linkinfo"]["info_kind"]) == (mac, 1430, "veth")
        assert {"UP", "LOWER_UP"} <= set(end["flags"])
        assert (end["num_tx_queues"], end["num_rx_queues"]) == (1, 1), "not one for each processor"
    shown = {a["local"]: a for a in pod["addr_info"] if a["scope"] == "global"}
    assert sorted(shown) == sorted(addresses)
    for address in addresses:
        option, length = ("-6", 128) if ":" in address else ("-4", 32)
        assert shown[address]["prefixlen"] == length
        assert not shown[address].get("tentative")
        (default,) = pair.pod.ip_json(option, "route", "show", "default")
        assert (default["gateway"], default["dev"]) == (GATEWAYS[address], "eth0")
        (own,) = pair.node.ip_json(option, "route", "show", "proto", "80")
        assert (own["dst"], own["dev"]) == (address, "opod1")
        (entry,) = pair.pod.ip_json("neigh", "show", GATEWAYS[address])
        assert (entry["lladdr"], entry["state"]) == (wanted.host_mac, ["PERMANENT"])
        (own,) = (a for a in host["addr_info"] if a["local"] == GATEWAYS[address])
        assert not own.get("tentative")
    assert pair.faults(wanted) == []


@pytest.mark.parametrize("is_first", [False, True], ids=["the pod speaks first", "the node"])
@pytest.mark.parametrize("address", [V4, V6])
def test_pod_that_changed_its_mac_is_reached(pair: Pair, address: str, is_first: bool) -> None:
    """The reference plugin tuning changes it in a chain, after us."""
    pair.node.ip("addr", "add", "192.0.2.1/32", "dev", "lo")
    pair.node.ip("addr", "add", "2001:db8::1/128", "dev", "lo")
    pair.attach(link(V4, V6))
    pair.pod.ip("link", "set", "eth0", "address", "02:00:00:00:aa:aa")
    outside = "2001:db8::1" if ":" in address else "192.0.2.1"
    sender, receiver, target = (
        (pair.node, pair.pod, address) if is_first else (pair.pod, pair.node, outside)
    )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        receiver.socket(family, socket.SOCK_DGRAM) as far,
        sender.socket(family, socket.SOCK_DGRAM) as near,
    ):
        far.bind((target, 4343))
        far.settimeout(20)
        near.sendto(b"hello", (target, 4343))
        source = far.recvfrom(64)[1][0]
        assert source != GATEWAYS[V4], "nobody takes the gateway for a node's address"


@pytest.mark.parametrize("addresses", FAMILY_SETS)
def test_detached_pod_leaves_nothing(pair: Pair, addresses: tuple[str, ...]) -> None:
    before = pair.state()
    pair.attach(link(*addresses))
    assert pair.detach("opod1") is True
    assert pair.state() == before
    assert pair.detach("opod1") is False
    pair.attach(link(*addresses))
    assert pair.faults(link(*addresses)) == []


def test_second_interface_leaves_the_first_ones_gateway_and_default(pair: Pair) -> None:
    first, second = link(V4, V6), link("10.1.0.3", "fd00::3", interface="eth1", number=2)
    pair.attach(first)
    pair.attach(second, first)
    assert [r["dev"] for r in pair.pod.ip_json("-4", "route", "show", "default")] == ["eth0"]
    assert pair.faults(first) == pair.faults(second) == []
    for wanted in (first, second):
        for address in map(str, wanted.addresses):
            there = GATEWAYS[V6] if ":" in address else GATEWAYS[V4]
            outside = "2001:db8::9" if ":" in address else "192.0.2.9"
            (route,) = pair.pod.ip_json("route", "get", outside, "from", address)
            assert (route["dev"], route["gateway"]) == (wanted.interface, there)
    pair.detach("opod2")
    assert pair.faults(first) == []


def test_only_a_pod_with_several_interfaces_has_rules(pair: Pair) -> None:
    plain = pair.pod.ip("rule"), pair.pod.ip("-6", "rule")
    pair.attach(link(V4, V6))
    assert (pair.pod.ip("rule"), pair.pod.ip("-6", "rule")) == plain


def test_default_route_of_a_second_interface_that_is_lost_is_named(pair: Pair) -> None:
    """The route in the interface's own table is not taken for it."""
    first, second = link(V4, V6), link("10.1.0.3", "fd00::3", interface="eth1", number=2)
    pair.attach(first)
    pair.attach(second, first)
    pair.pod.ip("route", "del", "default")
    assert pair.faults(second) == ["route 0.0.0.0/0 via 169.254.1.1 is missing"]


def test_gateway_is_reached_by_each_interface(pair: Pair) -> None:
    """So that somebody may move the default route: `ip route add` without `onlink`."""
    first, second = link(V4, V6), link("10.1.0.3", "fd00::3", interface="eth1", number=2)
    pair.attach(first)
    pair.attach(second, first)
    for version, gateway in (("-4", GATEWAYS[V4]), ("-6", GATEWAYS[V6])):
        pair.pod.ip(version, "route", "del", "default")
        pair.pod.ip(version, "route", "add", "default", "via", gateway, "dev", "eth1")
    pair.detach("opod1")
    assert pair.faults(second) == []


@pytest.mark.parametrize(
    ("inside", "command", "expected"),
    [
        (True, "addr del 10.1.0.2/32 dev eth0", "address 10.1.0.2 is missing on eth0"),
        (True, "addr del fd00::2/128 dev eth0", "address fd00::2 is missing on eth0"),
        (True, "route del default", "route 0.0.0.0/0 via 169.254.1.1 is missing"),
        (True, "-6 route del default", "route ::/0 via fe80::1 is missing"),
        (True, "link set eth0 address 02:00:00:00:00:99", "has MAC 02:00:00:00:00:99, not"),
        (True, "link set eth0 down", "interface eth0 is down"),
        (True, "link del eth0", "interface eth0 is missing"),
        (False, "link set opod1 down", "interface opod1 of the host is missing or down"),
        (False, "link del opod1", "interface opod1 of the host is missing or down"),
    ],
)
def test_what_is_lost_is_named(pair: Pair, inside: bool, command: str, expected: str) -> None:
    wanted = link(V4, V6)
    pair.attach(wanted)
    (pair.pod if inside else pair.node).ip(*command.split())
    assert expected in "; ".join(pair.faults(wanted))


def test_lost_route_of_the_host_is_named(pair: Pair) -> None:
    wanted = link(V4)
    pair.attach(wanted)
    pair.node.ip("route", "del", "10.1.0.2")
    assert pair.faults(wanted) != []


def test_what_others_added_is_no_fault(pair: Pair) -> None:
    wanted = link(V4, V6)
    pair.attach(wanted)
    for command in (
        "addr add 192.0.2.7/24 dev eth0",
        "route add 198.51.100.0/24 via 169.254.1.1 dev eth0 onlink",
        "link add eth9 type bridge",
        "link set eth0 mtu 1300",
    ):
        pair.pod.ip(*command.split())
    assert pair.faults(wanted) == []


@pytest.mark.parametrize("where", ["pod", "node"])
def test_name_that_exists_is_refused_and_kept(pair: Pair, where: str) -> None:
    netns, name = (pair.pod, "eth0") if where == "pod" else (pair.node, "opod1")
    netns.ip("link", "add", name, "type", "bridge")
    before = pair.state()
    with pytest.raises(InterfaceExistsError, match="exists already"):
        pair.attach(link(V4, V6))
    assert pair.state() == before


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        pytest.param({"mtu": 67}, "veth pair", id="MTU too small"),
        pytest.param({"mtu": 1279}, "in the pod", id="MTU below IPv6's"),
        pytest.param({"interface": "i" * 16}, "veth pair", id="name too long"),
        pytest.param({"mac": MacAddress("01:00:5e:00:00:01")}, "veth pair", id="multicast MAC"),
        pytest.param({"interface": "eth%d"}, "eth%d", id="name that is a pattern"),
    ],
)
def test_attach_that_fails_leaves_nothing(pair: Pair, changes: dict[str, Any], match: str) -> None:
    before = pair.state()
    with pytest.raises(KernelError, match=match):
        pair.attach(replace(link(V4, V6), **changes))
    assert pair.state() == before


def test_pod_whose_runtime_switched_ipv6_off_gets_it_on_this_interface(pair: Pair) -> None:
    pair.pod.sysctl("net/ipv6/conf/all/disable_ipv6", 1)
    pair.pod.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    pair.attach(link(V4, V6))
    assert pair.faults(link(V4, V6)) == []


def test_what_is_no_network_namespace_is_told(pair: Pair) -> None:
    def look(rtnl: RtnlSocket, _pod: PodNamespace) -> None:
        for path in ("/dev/null", "/proc/self/ns/uts", "/proc/self/ns/mnt"):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                with pytest.raises(KernelError):
                    namespace_of(descriptor)
                with pytest.raises(KernelError):
                    pods.attach(rtnl, PodNamespace(descriptor), link(V4))
            finally:
                os.close(descriptor)

    before = pair.state()
    pair.work(look)
    assert pair.state() == before


def test_pod_that_went_takes_its_link_along(pair: Pair) -> None:
    pair.attach(link(V4, V6))
    pair.pod.close()
    for _ in range(500):
        if "opod1" not in pair.node.ip("link"):
            break
    assert pair.node.call(lambda: pods.detach("opod1")) is False


def test_names_are_the_kernels_and_differ() -> None:
    names = {
        pods.link_name(AttachmentKey(network, container, interface))
        for network in ("a", "ab")
        for container in ("b", "c" * 64)
        for interface in ("eth0", "e")
    }
    assert len(names) == 8
    assert all(len(name) == 15 for name in names)
    first = {int(link_mac(name, end)[:2], 16) & 3 for name in names for end in ("pod", "host")}
    assert first == {2}, "locally administered, one station's"
