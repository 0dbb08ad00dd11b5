"""Notices of the real kernel: those of what we wrote are known, those of others' are told."""

from functools import partial

import pytest

from overlay.kernel.monitor import Monitor
from overlay.kernel.netlink import NetlinkKernel
from overlay.kernel.notices import Change
from overlay.model.kernel import FdbEntry
from overlay.plan.diff import diff
from overlay.plan.planner import desired
from tests.kernel.netns import Netns
from tests.unit.worlds import by_key, lease, site

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(netns: Netns) -> Netns:
    netns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for device in ("eth0", "far0"):
        netns.sysctl(f"net/ipv6/conf/{device}/accept_dad", 0)
    netns.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    netns.ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    netns.ip("link", "set", "far0", "up")
    netns.ip("link", "set", "eth0", "up")
    return netns


def told(node: Netns, monitor: Monitor) -> list[str]:
    """Return the changes told, up to that of an address that is added now as the last one."""
    node.ip("neigh", "replace", "192.0.2.77", "lladdr", "02:00:00:00:00:77", "dev", "eth0")
    found: list[str] = []
    while not any("192.0.2.77" in each for each in found):
        notices = node.call(partial(monitor.wait, 5.0))
        assert notices, "the last one came"
        found += [f"{each.verb} {each.key}" for each in notices if isinstance(each, Change)]
    node.ip("neigh", "del", "192.0.2.77", "dev", "eth0")
    return [each for each in found if "192.0.2.77" not in each]


def test_own_entries_are_not_told_and_those_of_others_are(node: Netns) -> None:
    kernel, here = node.call(NetlinkKernel), site()

    def reach(*numbers: int) -> None:
        wanted = desired(here, by_key(*map(lease, numbers))).objects.values()
        assert kernel.apply(diff(wanted, kernel.dump())) == ()

    for _ in range(2):  # the devices first
        node.call(partial(reach, 2))
    monitor = node.call(Monitor)
    monitor.own = kernel.echoes
    node.call(partial(reach, 2, 3, 4))
    assert told(node, monitor) == []
    node.call(partial(reach, 2, 4))
    assert told(node, monitor) == []
    entry = next(
        item
        for item in desired(here, by_key(lease(4))).objects.values()
        if isinstance(item, FdbEntry)
    )
    theirs = ["bridge", "fdb", "replace", entry.mac, "dev", entry.device]
    node.run(*theirs, "dst", "192.0.2.99", "self", "permanent")
    node.run(*theirs, "dst", str(entry.destination), "self", "permanent")
    node.run("bridge", "fdb", "del", entry.mac, "dev", entry.device, "self")
    key = str(entry.key)
    assert told(node, monitor) == [f"set {key}", f"set {key}", f"del {key}"]
    node.call(partial(reach, 2, 4))
    assert told(node, monitor) == [], "put right again"
    monitor.close()
    kernel.close()
