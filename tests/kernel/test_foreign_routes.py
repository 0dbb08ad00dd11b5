"""Routes of a network with room for many: spread by metrics, and others' at their very prefixes."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from overlay.kernel.monitor import Monitor
from overlay.kernel.netlink import NetlinkKernel
from overlay.kernel.notices import Change, is_news
from overlay.kernel.reset import reset_node
from overlay.model.kernel import KernelObject, Route
from overlay.plan.diff import diff
from overlay.plan.planner import Site, desired
from tests.kernel.netns import Netns
from tests.unit.worlds import DUAL, by_key, lease, site

pytestmark = pytest.mark.kernel

WIDE = '{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}'


@pytest.fixture
def node(netns: Netns) -> Netns:
    netns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for device in ("eth0", "far0"):
        netns.sysctl(f"net/ipv6/conf/{device}/accept_dad", 0)
    netns.ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    netns.ip("link", "set", "far0", "up")
    netns.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    netns.ip("link", "set", "eth0", "up")
    netns.ip("route", "add", "default", "via", "192.0.2.254")
    return netns


def wanted(here: Site, numbers: Iterable[int]) -> list[KernelObject]:
    return list(desired(here, by_key(*(lease(i) for i in numbers))).objects.values())


def one_pass(netns: Netns, here: Site, numbers: Iterable[int]) -> list[str]:
    """Dump, compare and apply once; return the operations."""

    def work() -> list[str]:
        kernel = NetlinkKernel()
        ops = diff(wanted(here, numbers), kernel.dump())
        assert kernel.apply(ops) == ()
        kernel.close()
        return [str(op) for op in ops]

    return netns.call(work)


def settle(netns: Netns, here: Site, numbers: Iterable[int]) -> None:
    while one_pass(netns, here, numbers):
        pass


def routes(netns: Netns, prefix: str) -> list[tuple[str, int]]:
    """Return device and metric of the routes to ``prefix``, in the order the kernel takes them."""
    found = netns.ip_json("route", "show", prefix)
    return [(each["dev"], each.get("metric", 0)) for each in found]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]


def test_routes_of_a_wide_network_have_metrics_and_settle(node: Netns) -> None:
    settle(node, site(WIDE), (2, 3))
    assert routes(node, "10.244.2.0/24") == [("overlay.1", 1 + (244 * 256 + 2) % 1024)]
    assert one_pass(node, site(WIDE), (2, 3)) == []
    settle(node, site(WIDE), (3,))
    assert routes(node, "10.244.2.0/24") == []


@pytest.mark.parametrize("count", [3, 100], ids=["asked for", "dumped"])
def test_foreign_routes_at_peers_prefixes_are_removed_with_the_first_pass_and_named(
    node: Netns, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    numbers = range(2, 2 + count)
    settle(node, site(WIDE), ())
    node.ip("link", "add", "br7", "type", "bridge")
    node.ip("link", "set", "br7", "up")
    node.ip("addr", "add", "10.244.3.1/24", "dev", "br7")  # a route of the kernel's own
    node.ip("route", "add", "10.244.2.0/24", "via", "192.0.2.254", "proto", "99")
    node.ip("route", "add", "10.244.2.0/24", "dev", "eth0", "metric", "3")
    node.ip("route", "add", "blackhole", "10.244.4.0/24", "metric", "1")
    node.ip("route", "add", "10.244.4.0/24", "dev", "eth0", "metric", "5000")
    node.ip("route", "add", "10.244.0.0/16", "dev", "eth0")
    one_pass(node, site(WIDE), numbers)
    assert [device for device, _ in routes(node, "10.244.2.0/24")] == ["overlay.1"]
    assert [device for device, _ in routes(node, "10.244.3.0/24")] == ["overlay.1"]
    assert routes(node, "10.244.4.0/24")[-1] == ("eth0", 5000), "what is behind ours stays"
    assert len(routes(node, "10.244.4.0/24")) == 2
    assert routes(node, "10.244.0.0/16") == [("eth0", 0)]
    lines = warnings(caplog)
    assert len(lines) == 4
    assert "route 10.244.3.0/24 was there already, by protocol 2 on br7, and is replaced" in str(
        lines
    )
    assert one_pass(node, site(WIDE), numbers) == []


def test_foreign_route_that_comes_later_is_told_found_and_removed(
    node: Netns, caplog: pytest.LogCaptureFixture
) -> None:
    here = site(WIDE)
    settle(node, here, (2, 3))
    kernel = node.call(NetlinkKernel)
    mirror = {item.key: item for item in node.call(kernel.dump)}
    settled = kernel.mark
    assert node.call(kernel.look) == settled
    monitor = node.call(Monitor)
    node.ip("route", "add", "10.244.9.0/24", "dev", "eth0")
    node.ip("route", "add", "10.244.2.0/24", "dev", "eth0", "metric", "4000")
    node.ip("route", "add", "10.244.2.0/24", "dev", "eth0", "proto", "static")
    told: list[Change] = []
    while len(told) < 3:
        told += [each for each in node.call(partial(monitor.wait, 5.0)) if isinstance(each, Change)]
    monitor.close()
    assert [is_news(each, mirror) for each in told] == [False, False, True]
    assert node.call(kernel.look) != settled
    kernel.close()
    assert one_pass(node, here, (2, 3)) == ["del route 10.244.2.0/24 dev eth0 proto 4"]
    assert routes(node, "10.244.2.0/24")[0][0] == "overlay.1"
    assert len(routes(node, "10.244.2.0/24")) == 2
    assert len(warnings(caplog)) == 1
    assert one_pass(node, here, (2, 3)) == []


def test_foreign_route_stays_where_ours_goes_and_where_the_node_is_reset(
    node: Netns, tmp_path: Path
) -> None:
    settle(node, site(WIDE), (2, 3))
    for number in (2, 3):
        node.ip("route", "add", f"10.244.{number}.0/24", "dev", "eth0")
    one_pass(node, site(WIDE), (3,))
    assert routes(node, "10.244.2.0/24") == [("eth0", 0)], "no peer's any more"
    assert [device for device, _ in routes(node, "10.244.3.0/24")] == ["overlay.1"]
    node.ip("route", "add", "10.244.3.0/24", "dev", "eth0")
    node.call(partial(reset_node, tmp_path))
    assert routes(node, "10.244.3.0/24") == [("eth0", 0)]


def test_routes_of_one_metric_are_taken_over_and_never_gone(node: Netns) -> None:
    """As an agent before this one made them, or before the network was widened; and back."""
    narrow, wide = site(DUAL), site(WIDE)
    settle(node, narrow, range(2, 80))
    ops = one_pass(node, wide, range(2, 80))
    made = [n for n, op in enumerate(ops) if op.startswith("set route 10.244.") and "metric" in op]
    gone = [n for n, op in enumerate(ops) if op.startswith("del route 10.244.")]
    assert len(made) == 78
    assert max(made) < min(gone)
    settle(node, wide, range(2, 80))
    for number in (2, 79):
        assert [m > 0 for _, m in routes(node, f"10.244.{number}.0/24")] == [True]
    settle(node, narrow, range(2, 80))
    assert routes(node, "10.244.2.0/24") == [("overlay.1", 0)]


def test_plain_routes_are_spread_as_well(node: Netns) -> None:
    here = site(WIDE[:-1] + ',"Backend":{"Type":"host-gw"}}')
    peers = by_key(lease(2, backend="host-gw"))
    plan = desired(here, peers).objects.values()
    node.ip("route", "add", "10.244.2.0/24", "dev", "eth0")
    node.call(lambda: NetlinkKernel().apply(diff(plan, NetlinkKernel().dump())))
    assert diff(plan, node.call(lambda: NetlinkKernel().dump())) == ()
    route, _ipv6 = [item for item in plan if isinstance(item, Route)]
    assert routes(node, "10.244.2.0/24") == [("eth0", route.metric)]
    assert route.metric > 0
