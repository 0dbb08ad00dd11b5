"""What the monitor tells: a change of an object, of the packet filter, or that something happened.

``by`` names who did it as far as the kernel says so, and is empty where it
does not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from overlay.kernel.container import hides_processes
from overlay.model.kernel import (
    MAIN_TABLE,
    ForeignRoute,
    KernelObject,
    Key,
    LinkAddress,
    Route,
    Rule,
    UnreachableRoute,
    Verb,
    VxlanLink,
)
from overlay.model.metric import spread_metric

OVERFLOW: Final = "overflow"
UNDERLAY: Final = "underlay"  # some link or address
SYSCTL: Final = "sysctl"  # forwarding
FORWARD_TABLES: Final = ("ip filter", "ip6 filter")  # iptables' own, as nft calls them

_PID_MOST: Final = 1 << 22  # linux/threads.h, PID_MAX_LIMIT


@dataclass(frozen=True, slots=True)
class Change:
    """An object was set or deleted; ``item`` is None where it is none that could be ours.

    The key ``("device", NAME)`` says that an interface appeared, went, went up
    or down, or got another address: routes go with it, and IPv4's in silence.
    ``("forwarding", NAME)`` says that it forwards no more what comes in by it.
    """

    verb: Verb
    key: Key
    item: KernelObject | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class RulesetChange:
    """Some nftables transaction was carried out, ours or not; it made ``generation``.

    ``tables`` are those of our own that it changed anything of.
    """

    generation: int
    by: str = ""
    tables: frozenset[str] = frozenset()


Notice: TypeAlias = Change | RulesetChange | str


def is_news(notice: Change, mirror: dict[Key, KernelObject], underlay: str = "") -> bool:
    """Return whether a change says something else than ``mirror``, which holds what is ours.

    Our own changes come back as notices too; they are in the mirror by then.
    """
    key, item = notice.key, notice.item
    if key[0] in {"device", "forwarding"}:
        return key[1] == underlay
    known = mirror.get(key)
    if notice.verb == "del":
        return known is not None
    if isinstance(item, ForeignRoute):
        return known is not None or _is_before_ours(item, mirror)
    if known is None:
        # Something new that carries our mark, or lies on one of our devices.
        if isinstance(item, VxlanLink | Route | UnreachableRoute | Rule):
            return True
        device = getattr(item, "device", None)
        return ("link", device) in mirror and not _is_passing(item)
    return known != item


def _is_before_ours(foreign: ForeignRoute, mirror: dict[Key, KernelObject]) -> bool:
    metric = spread_metric(foreign.prefix)
    return foreign.metric < metric and ("route", MAIN_TABLE, foreign.prefix, metric) in mirror


def _is_passing(item: KernelObject | None) -> bool:
    return isinstance(item, LinkAddress) and item.address.ip.is_link_local


def probable_maker(port: int) -> str:
    """Return who is likely behind a netlink port: the first socket of a process has its pid.

    Only likely: the kernel gives another number where that one is taken, and a
    process may choose (``netlink_autobind`` in net/netlink/af_netlink.c).
    """
    if not 0 < port < _PID_MOST:
        return ""
    if hides_processes():  # our process of that number is another one
        return f"probably process {port} of the host"
    try:
        name = Path(f"/proc/{port}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"probably process {port}, which has ended"
    return f"probably {name} (pid {port})"


def maker(pid: int, name: str) -> str:
    """Return who made a change, where the kernel names pid and process."""
    return f"{name or '?'} (pid {pid})" if pid else ""
