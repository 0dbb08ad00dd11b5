"""What the kernel tells nothing of is looked at, and told once until it changes again."""

from collections.abc import Sequence

from overlay.agent.status import Status
from overlay.agent.sysctl_watch import SysctlWatch
from overlay.kernel.notices import SYSCTL, Notice
from overlay.kernel.sysctl import Sysctl
from tests.unit.worlds import DUAL, V4, site

RA, OFF = (f"net/ipv6/conf/overlay-v6.1/{name}" for name in ("accept_ra", "disable_ipv6"))


def test_value_that_is_not_as_wanted_is_told_once() -> None:
    told: list[Notice] = []
    wrong: set[str] = set()
    asked: list[str] = []

    def differing(settings: Sequence[Sysctl]) -> frozenset[str]:
        asked[:] = [setting.name for setting in settings]
        return frozenset(wrong)

    status = Status()
    watch = SysctlWatch(status, told.extend, differing)
    watch.look()
    assert asked == [], "nothing is wanted yet"
    assert watch.pause_s < 1
    status.update(site=site())
    watch.look()
    assert {RA, OFF} <= set(asked)
    assert not any("forwarding" in name or "ip_forward" in name for name in asked), "they are told"
    assert watch.pause_s < 1
    assert told == []
    wrong.add(RA)
    watch.look()
    watch.look()
    assert told == [SYSCTL], "one that cannot be written is no reason to look all the time"
    wrong.add(OFF)
    watch.look()
    assert told == [SYSCTL] * 2
    wrong.clear()
    watch.look()
    wrong.add(RA)
    watch.look()
    assert told == [SYSCTL] * 3


def test_network_without_such_values_is_hardly_looked_at_until_it_has_some() -> None:
    asked: list[str] = []

    def differing(settings: Sequence[Sysctl]) -> frozenset[str]:
        asked[:] = [setting.name for setting in settings]
        return frozenset()

    status = Status()
    watch = SysctlWatch(status, lambda _: None, differing)
    status.update(site=site(V4))
    watch.look()
    assert asked == []
    assert watch.pause_s > 5
    status.update(site=site(DUAL))
    watch.look()
    assert RA in asked
    assert watch.pause_s < 1
