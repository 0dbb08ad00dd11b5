"""The bridge on the kernel: made, put right, given back; its rules watched; lost ports named."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from typing import TypeVar

import pytest

from overlay.kernel import bridge, pods
from overlay.kernel.announce import frame
from overlay.kernel.base import DeviceConflictError
from overlay.kernel.bridge import Bridge
from overlay.kernel.bridge_diff import differences
from overlay.kernel.bridge_ports import hold_ports, hold_proxies
from overlay.kernel.links import list_links
from overlay.kernel.nft_ports import PortTable
from overlay.kernel.pod_faults import Expected, faults
from overlay.kernel.pod_namespace import PodNamespace
from overlay.kernel.pods import PodLink, link_mac
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import IPAddress, MacAddress
from overlay.model.node import POD_BRIDGE, POD_BRIDGE_MAC
from overlay.policy.ports import Port
from tests.kernel.netns import MakeNetns, Netns

pytestmark = pytest.mark.kernel

T = TypeVar("T")
WANTED = Bridge(1430, (ip_interface("10.1.0.1/24"), ip_interface("fd00::1/64")))
NETWORKS = (ip_network("10.1.0.0/24"), ip_network("fd00::/64"))


def port(number: int) -> Port:
    own = (ip_address(f"10.1.0.{number}"), ip_address(f"fd00::{number}"))
    return Port(f"opod{number:011x}", MacAddress(f"02:00:00:00:00:{number:02x}"), own)


@pytest.fixture
def node(make_netns: MakeNetns) -> Netns:
    return make_netns()


def work(node: Netns, function: Callable[[RtnlSocket], T]) -> T:
    def inside() -> T:
        with RtnlSocket() as rtnl:
            return function(rtnl)

    return node.call(inside)


def test_bridge_is_made_once_and_then_left_alone(node: Netns) -> None:
    index, changes = work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    assert f"link {POD_BRIDGE} made" in changes
    assert work(node, lambda rtnl: bridge.ensure(rtnl, WANTED)) == (index, [])


def lacking(node: Netns, wanted: Bridge | None = WANTED, *routed: str) -> list[str]:
    ports, addresses = [port(2).link], [ip_address(text) for text in routed]
    return work(node, lambda rtnl: differences(rtnl, wanted, ports, addresses))


def test_differences_are_told_and_nothing_is_changed(node: Netns) -> None:
    whole = f"set link {POD_BRIDGE} type bridge mtu 1430 address {POD_BRIDGE_MAC} up"
    addresses = [f"set addr {text} dev {POD_BRIDGE}" for text in ("10.1.0.1/24", "fd00::1/64")]
    enslaved = f"set link {port(2).link} master {POD_BRIDGE} up"
    table = "set table bridge overlay"
    assert lacking(node) == [whole, *addresses, enslaved, table]
    assert lacking(node, None) == []
    assert POD_BRIDGE not in node.ip("link")
    index, _ = work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    veth = f"link add {port(2).link} mtu 1430 type veth peer name there"
    node.ip(*veth.split())
    assert lacking(node) == [enslaved, table]
    node.call(lambda: PortTable().hold([port(2)]))
    work(node, lambda rtnl: hold_ports(rtnl, index, [port(2).link], list_links(rtnl)))
    assert lacking(node) == []
    assert lacking(node, WANTED, "fd00::9") == [f"set neigh proxy fd00::9 dev {POD_BRIDGE}"]
    for words, line in (
        (f"link set {POD_BRIDGE} mtu 1400", whole),
        (f"addr del 10.1.0.1/24 dev {POD_BRIDGE}", addresses[0]),
        (f"addr add 10.9.0.1/24 dev {POD_BRIDGE}", f"del addr 10.9.0.1/24 dev {POD_BRIDGE}"),
        (f"link set {port(2).link} nomaster", enslaved),
    ):
        node.ip(*words.split())
        assert line in lacking(node), words
    node.sysctl(f"net/ipv4/conf/{POD_BRIDGE}/proxy_arp", 0)
    assert f"set sysctl net/ipv4/conf/{POD_BRIDGE}/proxy_arp = 1" in lacking(node)
    assert lacking(node, None) == [f"del link {POD_BRIDGE}"]


@pytest.mark.parametrize(
    "damage",
    [
        f"link del {POD_BRIDGE}",
        f"link set {POD_BRIDGE} down",
        f"link set {POD_BRIDGE} mtu 1000",
        f"link set {POD_BRIDGE} address 02:00:00:00:00:99",
        f"addr del 10.1.0.1/24 dev {POD_BRIDGE}",
        f"addr add 10.9.0.1/24 dev {POD_BRIDGE}",
    ],
)
def test_damage_is_put_right(node: Netns, damage: str) -> None:
    work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    node.ip(*damage.split())
    work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    assert work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))[1] == []
    (found,) = node.ip_json("addr", "show", "dev", POD_BRIDGE)
    shown = [f"{a['local']}/{a['prefixlen']}" for a in found["addr_info"] if a["scope"] == "global"]
    assert shown == [str(interface) for interface in WANTED.addresses]
    assert (found["mtu"], found["address"], "UP" in found["flags"]) == (1430, POD_BRIDGE_MAC, True)


def test_new_subnet_replaces_the_old_ones_addresses(node: Netns) -> None:
    work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    other = Bridge(1430, (ip_interface("10.7.0.1/24"),))
    work(node, lambda rtnl: bridge.ensure(rtnl, other))
    routes = [r["dst"] for r in node.ip_json("route", "show", "dev", POD_BRIDGE)]
    assert routes == ["10.7.0.0/24"]


def test_removal_is_of_ours_alone(node: Netns) -> None:
    work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    assert work(node, bridge.remove) is True
    assert work(node, bridge.remove) is False
    node.ip("link", "add", POD_BRIDGE, "type", "bridge")
    assert work(node, bridge.remove) is False
    with pytest.raises(DeviceConflictError, match="is a bridge and is not ours"):
        work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    assert POD_BRIDGE in node.ip("link")


def test_bridge_that_was_not_marked_yet_is_ours(node: Netns) -> None:
    """Its maker died between making and marking it."""
    node.ip("link", "add", POD_BRIDGE, "address", POD_BRIDGE_MAC, "type", "bridge")
    work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    (found,) = node.ip_json("link", "show", POD_BRIDGE)
    assert found["ifalias"] == "overlay-fabric"


def _hold(index: int, wanted: list[IPAddress], rtnl: RtnlSocket) -> None:
    hold_proxies(rtnl, index, wanted)


def test_routed_pods_are_answered_for_and_no_others(node: Netns) -> None:
    index, _ = work(node, lambda rtnl: bridge.ensure(rtnl, WANTED))
    pods_now = [ip_address(text) for text in ("fd00::5", "10.1.0.5", "fd00::6")]
    for wanted in (pods_now, pods_now[2:], []):
        work(node, partial(_hold, index, wanted))
        shown = {e["dst"] for e in node.ip_json("-6", "neigh", "show", "proxy")}
        assert shown == {str(a) for a in wanted if isinstance(a, IPv6Address)}


class OnBridge:
    """A node with its bridge, and one pod on it."""

    def __init__(self, make: MakeNetns) -> None:
        self.node, self.pod = make(), make()
        macs = link_mac("opod1", "pod"), link_mac("opod1", "host")
        own = (ip_address("10.1.0.5"), ip_address("fd00::5"))
        self.link = PodLink("eth0", "opod1", *macs, 1430, own, NETWORKS)
        self.index, _ = work(self.node, lambda rtnl: bridge.ensure(rtnl, WANTED))
        work(self.node, self._in_pod)

    def _in_pod(self, rtnl: RtnlSocket) -> None:
        with self._descriptor() as netns:
            pods.attach(rtnl, PodNamespace(netns), self.link, bridge=self.index)

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        descriptor = os.open(self.pod.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def faults(self) -> list[str]:
        link = self.link
        routes = tuple(
            (ip_network(default), network[1])
            for default, network in zip(("0.0.0.0/0", "::/0"), NETWORKS, strict=True)
        )
        expected = Expected("eth0", "opod1", link.mac, link.addresses, routes, is_bridged=True)

        def look(rtnl: RtnlSocket) -> list[str]:
            with self._descriptor() as netns:
                return faults(rtnl, PodNamespace(netns), expected)

        return work(self.node, look)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("link set opod1 nomaster", "interface opod1 of the host is not on opod-bridge"),
        ("link set opod1 down", "interface opod1 of the host is missing or down"),
        (f"link set {POD_BRIDGE} down", "interface opod-bridge of the host is missing or down"),
        (f"addr flush dev {POD_BRIDGE}", "route 10.1.0.5 dev opod-bridge of the host is missing"),
    ],
)
def test_what_is_lost_is_named(make_netns: MakeNetns, damage: str, named: str) -> None:
    here = OnBridge(make_netns)
    assert here.faults() == []
    here.node.ip(*damage.split())
    assert named in here.faults()


def test_addresses_of_a_pod_are_found_without_its_record(make_netns: MakeNetns) -> None:
    here = OnBridge(make_netns)
    found = work(here.node, pods.addresses_in_use)
    assert found == {"opod1": list(here.link.addresses)}
    here.node.ip("link", "set", "opod1", "alias", "somebody's own words")
    assert work(here.node, pods.addresses_in_use) == {"opod1": []}


@pytest.mark.parametrize("damage", ["nomaster", "down"])
def test_port_that_left_is_put_back(make_netns: MakeNetns, damage: str) -> None:
    here = OnBridge(make_netns)
    here.node.ip("link", "set", "opod1", damage)

    def hold(rtnl: RtnlSocket) -> list[str]:
        return hold_ports(rtnl, here.index, ["opod1", "opod9"], list_links(rtnl))

    assert work(here.node, hold) == ["link opod1 put back on opod-bridge"]
    assert work(here.node, hold) == []
    (found,) = here.node.ip_json("link", "show", "opod1")
    assert found["linkinfo"]["info_slave_data"]["hairpin"] is True


def test_rules_are_changed_port_by_port_and_read_as_if_written_at_once(node: Netns) -> None:
    def steps() -> None:
        table = PortTable()
        for numbers in ((), (2,), (2, 3, 4), (3,), (3, 5), (3, 5)):
            table.hold(port(n) for n in numbers)
        assert table.audit([port(3), port(5)]) is False

    node.call(steps)
    changed = node.nft("--stateless", "list", "table", "bridge", "overlay")
    node.call(lambda: PortTable().hold([port(3), port(5)]))
    whole = node.nft("--stateless", "list", "table", "bridge", "overlay")
    assert sorted(changed.splitlines()) == sorted(whole.splitlines())
    node.call(lambda: PortTable().remove())
    assert node.nft("list", "tables") == ""
    node.call(lambda: PortTable().remove())


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table bridge overlay",
        "flush chain bridge overlay ov_opod00000000002",
        "flush map bridge overlay ov_ports",
        "insert rule bridge overlay ov_source accept",
    ],
)
@pytest.mark.parametrize("is_listed", [True, False])
def test_rules_that_somebody_changed_are_written_anew(
    node: Netns, damage: str, is_listed: bool
) -> None:
    table, ports = PortTable(), [port(2), port(3)]
    node.call(lambda: table.hold(ports))
    before = node.nft("--stateless", "list", "table", "bridge", "overlay")
    if is_listed:  # another's change was looked at before
        node.nft("add", "table", "inet", "foreign")
        assert node.call(lambda: table.audit(ports)) is False
    node.nft(*damage.split())
    assert node.call(lambda: table.audit(ports)) is is_listed
    after = node.nft("--stateless", "list", "table", "bridge", "overlay")
    assert sorted(after.splitlines()) == sorted(before.splitlines())
    assert node.call(lambda: table.audit(ports)) is False


def test_change_of_a_table_that_somebody_took_away_is_written_whole(node: Netns) -> None:
    table = PortTable()
    node.call(lambda: table.hold([port(2), port(3)]))
    node.nft("flush", "ruleset")
    node.call(lambda: table.hold([port(3)]))
    assert "ov_opod00000000003" in node.nft("list", "ruleset")


def test_port_with_a_new_address_has_the_new_rules_alone(node: Netns) -> None:
    table, moved = PortTable(), replace(port(2), addresses=(ip_address("10.1.0.9"),))
    node.call(lambda: table.hold([port(2)]))
    node.call(lambda: table.hold([moved]))
    listed = node.nft("list", "table", "bridge", "overlay")
    assert "10.1.0.9" in listed
    assert "10.1.0.2 " not in listed


def test_announcements_are_those_of_the_rfcs() -> None:
    mac = bytes.fromhex("020000000001")
    arp = frame(mac, ip_address("10.1.0.5"))
    assert arp.hex() == (
        "ffffffffffff0200000000010806"
        "0001080006040001"
        "0200000000010a0100050000000000000a010005"
    )  # fmt: skip
    advertisement = frame(mac, ip_address("fd00::5"))
    assert advertisement[:14].hex() == "33330000000102000000000186dd"
    assert advertisement[54:56] == b"\x88\0"
    assert advertisement[58:62] == b"\x20\0\0\0", "override, unsolicited"
    assert advertisement[62:78] == ip_address("fd00::5").packed
    assert advertisement[78:] == b"\x02\x01" + mac
