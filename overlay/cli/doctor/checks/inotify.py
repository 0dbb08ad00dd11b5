"""Whether inotify instances are left: runtimes and log readers fail without."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, warning
from overlay.kernel import sysctl
from overlay.kernel.host.inotify import instances_left

_LIMIT: Final = "fs/inotify/max_user_instances"
_ENOUGH: Final = 16


def _run(_facts: Facts) -> Iterator[Verdict]:
    left, limit = instances_left(_ENOUGH), sysctl.read(_LIMIT)
    remedy = f"sysctl -w {_LIMIT}={max(1024, 2 * int(limit or 0))}"
    if left == 0:
        yield error(f"none of {limit} inotify instances is left: runtimes cannot start", remedy)
    elif left < _ENOUGH:
        yield warning(f"{left} of {limit} inotify instances are left", remedy)
    else:
        yield Fine(f"{_ENOUGH} or more of {limit} inotify instances are left")


CHECK: Final = Check("inotify", "inotify instances left to this user", _run)
