"""``NetlinkKernel`` on the real kernel: what it sets is what ``ip`` and ``bridge`` show."""

import contextlib
import re
import socket
import subprocess
import sys
from functools import partial
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from overlay.kernel.base import DeviceConflictError
from overlay.kernel.monitor import Monitor
from overlay.kernel.netlink import NetlinkKernel, check_devices
from overlay.kernel.notices import OVERFLOW, Change, Notice, RulesetChange, probable_maker
from overlay.kernel.reset import HELD_FILE, reset_node
from overlay.kernel.underlay import UnderlayFlags, find_underlay
from overlay.model.address import FAMILIES, Family, MacAddress
from overlay.model.errors import UsageError
from overlay.model.kernel import FdbEntry, KernelObject, Neighbor, Op, Route, VxlanLink
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity
from overlay.plan.backend import UnderlayError
from overlay.plan.diff import diff
from overlay.plan.planner import Site, desired
from tests.kernel.netns import Netns, eventually
from tests.unit.worlds import DUAL, by_key, lease, site

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(netns: Netns) -> Netns:
    """Return a node: ``eth0`` with an address of each family, and a default route."""
    netns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for device in ("eth0", "far0"):  # or routes of link-local addresses come a second later
        netns.sysctl(f"net/ipv6/conf/{device}/accept_dad", 0)
    netns.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    netns.ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    netns.ip("link", "set", "far0", "up")
    netns.ip("link", "set", "eth0", "up")
    netns.ip("route", "add", "default", "via", "192.0.2.254")
    return netns


def reconcile(netns: Netns, here: Site, *numbers: int) -> int:
    """Make passes until the kernel is in step; return how many operations that took."""

    def work() -> int:
        kernel = NetlinkKernel()
        wanted = desired(here, by_key(*(lease(i) for i in numbers))).objects.values()
        count = 0
        for _ in range(4):
            ops = diff(wanted, kernel.dump())
            if not ops:
                break
            count += len(ops)
            assert kernel.apply(ops) == ()
        assert diff(wanted, kernel.dump()) == ()
        kernel.close()
        return count

    return netns.call(work)


def test_dump_answers_with_the_objects_that_are_known(node: Netns) -> None:
    wanted = desired(site(), by_key(lease(2), lease(3))).objects
    reconcile(node, site(), 2, 3)
    neighbor = next(item for item in wanted.values() if isinstance(item, Neighbor))

    def differing() -> list[KernelObject]:
        found = NetlinkKernel().dump(wanted)
        assert len(found) == len(wanted)
        return [item for item in found if item is not wanted[item.key]]

    assert node.call(differing) == []
    node.ip("neigh", "replace", str(neighbor.address), "lladdr", "02:00:00:00:00:99",
            "dev", neighbor.device, "nud", "permanent")  # fmt: skip
    changed = Neighbor(neighbor.device, neighbor.address, MacAddress("02:00:00:00:00:99"))
    assert node.call(differing) == [changed]


def test_a_join_and_its_repair_load_no_library(node: Netns) -> None:
    script = """
import subprocess, sys
from overlay.kernel.netlink import NetlinkKernel
from overlay.plan.diff import diff
from overlay.plan.planner import desired
from tests.unit.worlds import by_key, lease, site
kernel, wanted = NetlinkKernel(), desired(site(), by_key(lease(2))).objects.values()
for breaks in ("", "mtu 1000 down", "address 02:00:00:00:00:99", "alias nobody"):
    for device in (each for each in wanted if breaks and hasattr(each, "underlay")):
        subprocess.run(["ip", "link", "set", device.name, *breaks.split()], check=True)
    for _ in range(3):
        assert kernel.apply(diff(wanted, kernel.dump())) == ()
    assert diff(wanted, kernel.dump()) == ()
print("pyroute2" in sys.modules)
"""
    assert node.run(sys.executable, "-c", script) == "False\n"


def look(netns: Netns) -> object:
    """Return what a dump would be told by now."""

    def work() -> object:
        with contextlib.closing(NetlinkKernel()) as kernel:
            return kernel.look()

    return netns.call(work)


def routing(netns: Netns) -> list[str]:
    """Return all routes and rules, sorted, once two listings agree.

    The kernel makes link-local routes in its own time, and a listing that
    they come in between may lack other routes.
    """
    seen: list[list[str]] = []

    def is_settled() -> bool:
        text = netns.ip("-d", "route", "show", "table", "all") + netns.ip("rule", "show")
        seen.append(sorted(text.splitlines()))
        return len(seen) > 1 and seen[-1] == seen[-2]

    eventually(is_settled, timeout_s=20.0, what="an end of changes to routes")
    return seen[-1]


def test_what_is_set_is_what_ip_and_bridge_show(node: Netns) -> None:
    reconcile(node, site(), 2, 3)
    (device,) = node.ip_json("link", "show", "overlay.1")
    data = device["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["learning"], data["local"], data["link"]) == (
        1,
        8472,
        False,
        "192.0.2.1",
        "eth0",
    )
    assert device["mtu"] == 1430, "the smaller of both families' devices, for pods have one MTU"
    assert device["ifalias"] == "overlay-fabric"
    (route,) = node.ip_json("route", "show", "10.244.2.0/24")
    assert (route["gateway"], route["dev"], route["protocol"]) == ("10.244.2.0", "overlay.1", "79")
    assert "onlink" in route["flags"]
    neighbors = {n["dst"]: n["lladdr"] for n in node.ip_json("neigh", "show", "nud", "permanent")}
    fdb = node.run("bridge", "fdb", "show", "dev", "overlay.1")
    assert f"{neighbors['10.244.3.0']} dst 192.0.2.3 self permanent" in fdb
    assert "fd00:1:0:2::" in neighbors
    rules = node.ip("rule", "show")
    assert "20310:\tfrom 10.244.1.0/24 lookup 20310" in rules
    assert "192.0.2.2 via 10.244.2.0" in node.ip("route", "show", "table", "20310")


def test_second_pass_is_silent_and_peers_come_and_go(node: Netns) -> None:
    assert reconcile(node, site(), 2, 3) > 0
    assert reconcile(node, site(), 2, 3) == 0
    assert reconcile(node, site(), 3) == 8, "two routes, a neighbor and an entry for each family"
    assert "10.244.2.0" not in node.ip("route")


def test_dump_that_would_be_the_same_has_the_same_mark(node: Netns) -> None:
    reconcile(node, site(), 2, 3)

    def ages() -> str:
        shown = node.ip("-s", "neigh", "show", "dev", "overlay.1", "nud", "permanent")
        return shown + node.run("bridge", "-s", "fdb", "show", "dev", "overlay.1")

    def work() -> tuple[object, object]:
        with contextlib.closing(NetlinkKernel()) as kernel:
            kernel.dump()
            return kernel.mark, kernel.look()

    mark, seen = node.call(work)
    assert seen == mark
    before = ages()
    eventually(lambda: ages() != before, timeout_s=20.0, what="that entries grow older")
    assert look(node) == mark
    node.ip("link", "add", "opod-x", "type", "veth", "peer", "name", "opod-y")
    assert look(node) == mark
    reconcile(node, site(), 2)
    assert look(node) != mark


def test_device_that_others_made_anew_is_found_by_the_next_change(node: Netns) -> None:
    wanted = desired(site(), by_key(lease(2))).objects.values()
    more = desired(site(), by_key(lease(2), lease(3))).objects.values()

    def work() -> tuple[object, ...]:
        with contextlib.closing(NetlinkKernel()) as kernel:
            kernel.apply(diff(wanted, kernel.dump()))
            kernel.dump()
            node.ip("link", "del", "overlay.1")
            with contextlib.closing(NetlinkKernel()) as other:
                other.apply(diff(wanted, other.dump()))
            return kernel.apply(diff(more, wanted))

    assert node.call(work) == ()
    assert reconcile(node, site(), 2, 3) == 0


def test_device_survives_re_creation_with_its_mac(node: Netns) -> None:
    reconcile(node, site(), 2)
    (before,) = node.ip_json("link", "show", "overlay.1")
    node.ip("link", "del", "overlay.1")
    reconcile(node, site(), 2)
    (after,) = node.ip_json("link", "show", "overlay.1")
    assert (after["address"], after["ifindex"]) != (before["address"], before["ifindex"])
    assert after["address"] == before["address"]


@pytest.mark.parametrize(
    "damage",
    [
        "link set overlay.1 down",
        "link set overlay.1 mtu 1300",
        "link set overlay.1 address 02:00:00:00:00:77",
        "link set overlay.1 type vxlan id 1 local 192.0.2.1 dev eth0 learning",
        "addr flush dev overlay.1",
        "addr add 10.9.9.9/32 dev overlay.1",
        "route del 10.244.2.0/24",
        "route replace 10.244.2.0/24 dev eth0",
        "-6 route replace fd00:1:0:2::/64 dev eth0 metric 1024",
        "neigh flush dev overlay.1 nud permanent",
        "neigh replace 10.244.2.0 lladdr 02:00:00:00:00:77 dev overlay.1 nud permanent",
        "rule del priority 20310",
        "rule add from 10.244.1.0/24 lookup 20310 priority 99 protocol 79",
        "route flush table 20310",
        "route add 10.244.200.0/24 dev eth0 proto 79",
        "route change 10.244.2.0/24 via 10.244.2.0 dev overlay.1 onlink proto 79 mtu 600",
    ],
)
def test_damage_is_repaired_by_one_reconciliation(node: Netns, damage: str) -> None:
    reconcile(node, site(), 2)
    before, mark = routing(node), look(node)
    node.ip(*damage.split())
    assert look(node) != mark
    reconcile(node, site(), 2)
    assert routing(node) == before
    assert reconcile(node, site(), 2) == 0


@pytest.mark.parametrize(
    "damage",
    [
        "fdb replace MAC dev overlay.1 dst 192.0.2.2 port 9999",
        "fdb replace MAC dev overlay.1 dst 192.0.2.2 vni 7 via eth0",
        "fdb replace MAC dev overlay.1 dst 192.0.2.2 self dynamic",
        "fdb del MAC dev overlay.1\nfdb add MAC dev overlay.1 nhid 11",
        "fdb add 02:00:00:00:00:99 dev overlay.1 nhid 11",
        "fdb append ZERO dev overlay.1 dst 192.0.2.8\nfdb append ZERO dev overlay.1 dst 192.0.2.9",
        "fdb append 01:00:5e:00:00:01 dev overlay.1 dst 192.0.2.9",
    ],
)
def test_forwarding_entry_that_others_made_or_changed(node: Netns, damage: str) -> None:
    reconcile(node, site(), 2)
    node.ip("nexthop", "add", "id", "10", "via", "192.0.2.9", "fdb")
    node.ip("nexthop", "add", "id", "11", "group", "10", "fdb")
    before, mark = node.run("bridge", "fdb", "show", "dev", "overlay.1"), look(node)
    lines = damage.replace("MAC", before.split()[0]).replace("ZERO", "00:00:00:00:00:00")
    node.run("bridge", "-batch", "-", stdin=lines)
    assert node.run("bridge", "fdb", "show", "dev", "overlay.1") != before
    assert look(node) != mark
    reconcile(node, site(), 2)
    assert node.run("bridge", "fdb", "show", "dev", "overlay.1") == before


def test_kernel_gives_a_peers_mac_no_second_destination(node: Netns) -> None:
    """Were it otherwise, ``FdbEntry.key`` would have to name the destination."""
    reconcile(node, site(), 2)
    before = node.run("bridge", "fdb", "show", "dev", "overlay.1")
    node.run("bridge", "fdb", "append", before.split()[0], "dev", "overlay.1", "dst", "192.0.2.9")
    assert node.run("bridge", "fdb", "show", "dev", "overlay.1") == before


def test_who_changed_what_is_told_where_the_kernel_says_so(node: Netns) -> None:
    reconcile(node, site(), 2)
    monitor = node.call(Monitor)
    node.nft("add", "table", "inet", "theirs")
    changes: list[Notice] = []
    while not changes:  # what the transaction is made of is told before it
        changes = node.call(partial(monitor.wait, 5.0))
    (change,) = changes
    assert isinstance(change, RulesetChange)
    assert re.fullmatch(r"nft \(pid \d+\)", change.by)
    # A batch that goes on reading, so that its process is there when the notice comes.
    writer = subprocess.Popen(
        ["nsenter", f"--net={node.path}", "ip", "-batch", "-"], stdin=subprocess.PIPE
    )
    assert writer.stdin is not None
    writer.stdin.write(b"route del 10.244.2.0/24\n")
    writer.stdin.flush()
    (route,) = node.call(partial(monitor.wait, 5.0))
    writer.communicate()
    assert isinstance(route, Change)
    assert (route.verb, str(route.item)[:20]) == ("del", "route 10.244.2.0/24 ")
    assert route.by == f"probably ip (pid {writer.pid})"
    monitor.close()


def test_sender_that_is_no_process_is_not_guessed() -> None:
    assert probable_maker(0) == ""
    assert probable_maker(4294960000) == ""
    assert probable_maker((1 << 22) - 1) == "probably process 4194303, which has ended"


def test_routes_taken_over_are_named_in_a_few_lines(
    node: Netns, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2, 22):
        node.ip("route", "add", f"10.244.{number}.0/24", "via", "192.0.2.254", "proto", "99")
    reconcile(node, site(), *range(2, 22))
    lines = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(lines) == 6
    assert lines[0].startswith("route 10.244.2.0/24 was there already, by protocol 99 on eth0")
    assert lines[-1] == "15 more such routes are replaced"


def test_renamed_device_is_taken_back(node: Netns) -> None:
    reconcile(node, site(), 2)
    node.ip("link", "set", "overlay.1", "down")
    node.ip("link", "set", "overlay.1", "name", "eth9")
    reconcile(node, site(), 2)
    assert "eth9" not in node.ip("link")


def test_what_others_made_is_neither_dumped_nor_touched(node: Netns) -> None:
    node.ip("link", "add", "vx9", "type", "vxlan", "id", "9", "dstport", "8472", "dev", "eth0")
    node.ip("link", "set", "vx9", "up")
    node.ip("route", "add", "10.244.77.0/24", "dev", "eth0")
    node.ip("route", "add", "10.244.2.0/24", "dev", "eth0", "metric", "50")
    node.ip("neigh", "add", "192.0.2.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0")
    node.ip("rule", "add", "from", "10.244.9.0/24", "lookup", "99")
    foreign = [
        ("link", "show", "vx9"),
        ("route", "show", "10.244.77.0/24"),
        ("neigh", "show", "192.0.2.9"),
        ("rule", "show", "table", "99"),
    ]
    before = [node.ip(*words) for words in foreign]
    reconcile(node, site(), 2)
    reconcile(node, site())
    node.call(lambda: NetlinkKernel().apply(diff((), NetlinkKernel().dump())))
    assert [node.ip(*words) for words in foreign] == before
    assert "metric 50" in node.ip("route", "show", "10.244.2.0/24")


def test_failures_are_collected_op_by_op(node: Netns) -> None:
    reconcile(node, site(), 2)
    peer = desired(site(), by_key(lease(3))).objects.values()
    good = [o for o in peer if isinstance(o, FdbEntry | Neighbor | Route)]
    bad = Route(ip_network("10.99.0.0/24"), "eth0", ip_interface("203.0.113.1/32").ip)
    nowhere = Route(ip_network("10.98.0.0/24"), "nope0")
    ops = [Op("set", good[0]), Op("set", bad), Op("set", nowhere)]
    ops += [Op("set", item) for item in good[1:]]
    failures = node.call(lambda: NetlinkKernel().apply(ops))
    assert [str(f.op.target) for f in failures] == [str(nowhere), str(bad)]
    assert "nope0" in failures[0].text
    assert "gateway" in failures[1].text, "the kernel's own words"
    assert set(good) <= set(node.call(lambda: NetlinkKernel().dump()))


def test_deleting_what_is_gone_is_no_failure(node: Netns) -> None:
    objects = list(desired(site(), by_key(lease(2))).objects.values())
    ops = [Op("del", item) for item in reversed(objects)]
    assert node.call(lambda: NetlinkKernel().apply(ops)) == ()


def test_changed_vni_and_port_make_new_devices_and_leave_none_behind(node: Netns) -> None:
    reconcile(node, site(), 2)
    other = DUAL[:-1] + ',"Backend":{"Type":"vxlan","VNI":1,"Port":4789}}'
    reconcile(node, site(other))
    (device,) = node.ip_json("link", "show", "overlay.1")
    assert device["linkinfo"]["info_data"]["port"] == 4789
    reconcile(node, site(DUAL[:-1] + ',"Backend":{"Type":"vxlan","VNI":16777215}}'))
    names = {link["ifname"] for link in node.ip_json("link", "show", "type", "vxlan")}
    assert names == {"ovl4.16777215", "ovl6.16777215"}


def test_host_gw_and_vxlan_follow_one_another(node: Netns) -> None:
    gateway = DUAL[:-1] + ',"Backend":{"Type":"host-gw"}}'

    def run(config: str, backend: str) -> None:
        here = site(config)
        wanted = desired(here, by_key(lease(2, backend=backend))).objects.values()
        for _ in range(3):
            failures = NetlinkKernel().apply(diff(wanted, NetlinkKernel().dump()))
        assert failures == ()
        assert diff(wanted, NetlinkKernel().dump()) == ()

    for config, backend in ((gateway, "host-gw"), (DUAL, "vxlan"), (gateway, "host-gw")):
        node.call(partial(run, config, backend))
    assert "via 192.0.2.2 dev eth0" in node.ip("route", "show", "10.244.2.0/24")
    assert "overlay" not in node.ip("link")


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("link add overlay.1 type bridge", "device overlay.1 exists, is not a VXLAN device"),
        ("link add overlay.1 type vxlan id 5 dstport 8472 dev eth0", "VNI 5 and port 8472"),
        (
            "link add flannel.1 type vxlan id 1 dstport 8472 dev eth0",
            "`ip link del flannel.1`; stop flannel on this node first",
        ),
    ],
)
def test_foreign_device_in_the_way_is_named_and_left_alone(
    node: Netns, made: str, named: str
) -> None:
    node.ip(*made.split())
    before = node.ip("-d", "link")
    here = site()
    tunnel = here.backend.tunnel
    assert tunnel is not None
    with pytest.raises(DeviceConflictError) as caught:
        node.call(lambda: check_devices(tunnel, NodeIdentity("n1", ""), here.underlay))
    assert named in str(caught.value)
    wanted = desired(here, by_key(lease(2))).objects.values()
    failures = node.call(lambda: NetlinkKernel().apply(diff(wanted, ())))
    assert isinstance(failures[0].op.target, VxlanLink)
    assert failures[0].is_conflict
    assert [line for line in before.splitlines() if line not in node.ip("-d", "link")] == []


def test_reset_removes_all_of_ours_and_nothing_else(node: Netns, tmp_path: Path) -> None:
    before = [node.ip(*w) for w in (("link",), ("route", "show", "table", "all"), ("rule",))]
    reconcile(node, site(), 2, 3)
    (tmp_path / "subnet.env").write_text("FLANNEL_MTU=1450\n")
    (tmp_path / HELD_FILE).write_text("{}")
    removed = node.call(lambda: reset_node(tmp_path))
    assert any("overlay.1" in line for line in removed)
    after = [node.ip(*w) for w in (("link",), ("route", "show", "table", "all"), ("rule",))]
    assert after == before
    assert list(tmp_path.iterdir()) == []
    assert node.call(lambda: reset_node(tmp_path)) == []


class TestUnderlay:
    def test_default_route_tells(self, node: Netns) -> None:
        found = node.call(lambda: find_underlay(UnderlayFlags(), FAMILIES))
        assert (found.device, found.mtu) == ("eth0", 1500)
        assert str(found.local[Family.IPV4]) == "192.0.2.1/24"
        assert str(found.public[Family.IPV6]) == "2001:db8::1"

    @pytest.mark.parametrize(
        "flags",
        [
            UnderlayFlags(iface=("nope0", "far0")),
            UnderlayFlags(iface=("198.51.100.1",)),
            UnderlayFlags(iface_regex=("^far",)),
            UnderlayFlags(iface_regex=(r"^198\.51",)),
            UnderlayFlags(iface_can_reach="198.51.100.77"),
        ],
    )
    def test_each_flag_chooses(self, node: Netns, flags: UnderlayFlags) -> None:
        node.ip("addr", "add", "198.51.100.1/24", "dev", "far0")
        found = node.call(lambda: find_underlay(flags, [Family.IPV4]))
        assert found.device == "far0"

    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            (
                UnderlayFlags(iface=("nope0",)),
                "--iface nope0: no such interface; there are far0 (no address), eth0 (192",
            ),
            (UnderlayFlags(iface_regex=("^nope",)), "--iface-regex ^nope: no such interface"),
            (UnderlayFlags(iface=("far0",)), "underlay far0 has no IPv4 address"),
            (UnderlayFlags(iface_can_reach="2001:db8:9::1"), "no route leads there"),
        ],
    )
    def test_what_cannot_be_is_named_with_what_there_is(
        self, node: Netns, flags: UnderlayFlags, text: str
    ) -> None:
        with pytest.raises(UnderlayError) as caught:
            node.call(lambda: find_underlay(flags, [Family.IPV4]))
        assert text in str(caught.value)

    def test_bad_expression_is_a_usage_error(self, node: Netns) -> None:
        flags = UnderlayFlags(iface_regex=("(",))
        with pytest.raises(UsageError, match="--iface-regex"):
            node.call(lambda: find_underlay(flags, []))

    def test_interface_that_is_down(self, node: Netns) -> None:
        node.ip("link", "set", "eth0", "down")
        with pytest.raises(UnderlayError, match="is down"):
            node.call(lambda: find_underlay(UnderlayFlags(iface=("eth0",)), []))

    def test_config_without_the_family_of_the_underlay(self, node: Netns) -> None:
        node.ip("-6", "addr", "flush", "dev", "eth0")
        config = parse_network_config(DUAL)
        with pytest.raises(UnderlayError, match="no IPv6 address"):
            node.call(lambda: find_underlay(UnderlayFlags(), config.families))


def test_monitor_that_lost_notices_says_so_and_knows_the_names_again(node: Netns) -> None:
    monitor = node.call(Monitor)
    monitor._route.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    commands = [f"route add 10.77.{i}.0/24 dev eth0" for i in range(250)]
    node.ip("link", "set", "far0", "down")
    node.run("ip", "-batch", "-", stdin="\n".join(commands))
    node.ip("link", "set", "far0", "name", "other0")
    seen: list[object] = []
    while OVERFLOW not in seen:
        seen = list(node.call(partial(monitor.wait, 5.0)))
        assert seen, "an overflow is told"
    assert "other0" in monitor._names.values()
    monitor.close()


def test_monitor_that_lost_notices_of_a_ruleset_says_so_and_hears_the_next(node: Netns) -> None:
    node.nft("add table inet overlay; add set inet overlay s { type ipv4_addr; }")
    monitor = node.call(Monitor)
    monitor._filter.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    elements = ", ".join(f"10.77.{i >> 8}.{i & 255}" for i in range(5000))
    node.nft("-f", "-", stdin=f"add element inet overlay s {{ {elements} }}")
    seen: list[object] = []
    while OVERFLOW not in seen:
        seen = list(node.call(partial(monitor.wait, 5.0)))
        assert seen, "an overflow is told"
    while node.call(partial(monitor.wait, 0.2)):
        pass
    monitor._filter.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    node.nft("add", "element", "inet", "overlay", "s", "{", "10.0.0.1", "}")
    told: list[object] = []
    while not any(isinstance(each, RulesetChange) and each.tables for each in told):
        told = list(node.call(partial(monitor.wait, 5.0)))
        assert told, "the next one is told with its table"
    monitor.close()
