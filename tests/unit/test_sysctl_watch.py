"""What the kernel tells nothing of is looked at, and told once until it changes again."""

from collections.abc import Sequence

from overlay.agent.status import Status
from overlay.agent.sysctl_watch import SysctlWatch
from overlay.kernel.notices import SYSCTL, Notice
from overlay.kernel.sysctl import Sysctl
from tests.unit.worlds import site

RA, FORWARDING = "net/ipv6/conf/overlay.1/accept_ra", "net/ipv4/conf/eth0/forwarding"


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
    status.update(site=site())
    watch.look()
    assert {RA, FORWARDING} <= set(asked)
    assert told == []
    wrong.add(RA)
    watch.look()
    watch.look()
    assert told == [SYSCTL], "one that cannot be written is no reason to look all the time"
    wrong.add(FORWARDING)
    watch.look()
    assert told == [SYSCTL] * 2
    wrong.clear()
    watch.look()
    wrong.add(RA)
    watch.look()
    assert told == [SYSCTL] * 3
