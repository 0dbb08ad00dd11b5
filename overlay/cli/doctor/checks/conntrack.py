"""Whether the table of connections is full: what does not fit is dropped."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, warning
from overlay.kernel import sysctl

_COUNT: Final = "net/netfilter/nf_conntrack_count"
_MAX: Final = "net/netfilter/nf_conntrack_max"
_FULL: Final = 0.95
_FILLING: Final = 0.75


def _run(_facts: Facts) -> Iterator[Verdict]:
    count, most = sysctl.read(_COUNT), sysctl.read(_MAX)
    if count is None or most is None:
        yield Fine("no connections are tracked")
        return
    used, size = int(count), int(most)
    seen = f"{used} of {size} connections"
    remedy = f"sysctl -w {_MAX}={2 * size}"
    if size and used >= _FULL * size:
        yield error(f"{seen}: new ones are dropped", remedy)
    elif size and used >= _FILLING * size:
        yield warning(f"{seen}: when the table is full, new ones are dropped", remedy)
    else:
        yield Fine(seen)


CHECK: Final = Check("conntrack", "nf_conntrack_count against nf_conntrack_max", _run)
