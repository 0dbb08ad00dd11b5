"""Whether inotify instances and watches are left: runtimes and log readers fail without."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, warning
from overlay.kernel import sysctl
from overlay.kernel.host.inotify import instances_left, watches_used

_LIMIT: Final = "fs/inotify/max_user_instances"
_ENOUGH: Final = 16
_WATCHES: Final = "fs/inotify/max_user_watches"
_OWN_WATCHES: Final = "user/max_inotify_watches"  # the same, but of this user namespace
_FILLING: Final = 0.9


def _run(_facts: Facts) -> Iterator[Verdict]:
    left, limit = instances_left(_ENOUGH), sysctl.read(_LIMIT)
    remedy = f"sysctl -w {_LIMIT}={max(1024, 2 * int(limit or 0))}"
    if left == 0:
        yield error(f"none of {limit} inotify instances is left: runtimes cannot start", remedy)
    elif left < _ENOUGH:
        yield warning(f"{left} of {limit} inotify instances are left", remedy)
    else:
        yield Fine(f"{_ENOUGH} or more of {limit} inotify instances are left")
    yield from _watches()


def _watches() -> Iterator[Verdict]:
    limit = int(sysctl.read(_OWN_WATCHES) or sysctl.read(_WATCHES) or 0)
    used = watches_used()
    if used < _FILLING * limit:
        yield Fine(f"{used} of {limit} inotify watches")
        return
    reason = f"{used} of {limit} inotify watches are used: nobody can watch more files then"
    yield warning(reason, f"sysctl -w {_WATCHES}={max(524288, 2 * limit)}")


CHECK: Final = Check("inotify", "inotify instances and watches left to this user", _run)
