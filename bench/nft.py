"""The packet filter: a ruleset compiled and applied, and one element of it changed.

As the agent does it: ``with_nodes`` brings the compiled ruleset in step, and the
element goes to the kernel by netlink. The floor is ``nft`` itself, executed for
one element of a set that is empty.
"""

import functools
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any, Final, TypeVar

from bench import peers
from bench.bed import namespace
from bench.options import Options
from bench.series import Series, ratio, series
from bench.table import Table
from overlay.kernel.nft_table import NftTable
from overlay.lab import netns
from overlay.model.address import Family, IPAddress
from overlay.model.versioned import SetHistory
from overlay.plan.planner import Site
from overlay.policy.egress import FirewallPlan, Nodes, compile_ruleset, with_nodes
from overlay.policy.ruleset import Ruleset

T = TypeVar("T")

_ELEMENT: Final = "element inet bench few { 192.0.2.1 }"
_COLUMNS: Final = (
    *("peers", "compiled ms", "applied whole ms", "checked ms"),
    *("one element more: in step ms", "applied ms", "nft alone ms", "applied / nft alone"),
)


def run(options: Options) -> Iterator[Table]:
    """Return one table; in a namespace of its own."""
    sizes = options.pick((100,), (1000, 5000, 20000), (1000, 5000, 20000))
    rounds = options.pick(2, 5, 10)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for size in sizes:
        with namespace() as name:
            found = netns.inside(name, functools.partial(_measure, size, rounds))
        cells = (
            found[key].spread(1000, 1) for key in ("compile", "apply", "check", "delta", "element")
        )
        floor = found["nft"]
        share = ratio(found["element"].median, floor.median)
        rows.append((f"{size:,}", *cells, floor.spread(1000, 1), share))
        records.append({"peers": size, **{key: each.samples for key, each in found.items()}})
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(size: int, rounds: int) -> dict[str, Series]:
    site = peers.site()
    found: dict[str, list[float]] = {
        key: [] for key in ("nft", "compile", "apply", "check", "delta", "element")
    }
    history: SetHistory[IPAddress] = SetHistory(
        IPv4Address((172 << 24) + (17 << 16) + number) for number in range(size)
    )
    nodes = {Family.IPV4: history.snapshot()}
    history.add(IPv4Address("172.30.0.1"))
    more = {Family.IPV4: history.snapshot()}
    table = NftTable()

    def timed(key: str, work: Callable[..., T], *arguments: Any) -> T:
        started = time.perf_counter()
        result = work(*arguments)
        found[key].append(time.perf_counter() - started)
        return result

    _alone("add table inet bench\nadd set inet bench few { type ipv4_addr; }")
    for _ in range(rounds):
        timed("nft", _alone, f"add {_ELEMENT}")
        _alone(f"delete {_ELEMENT}")
        ruleset = timed("compile", _compiled, site, nodes)
        timed("apply", table.apply, ruleset)
        timed("check", table.is_ours, ruleset)
        other = timed("delta", with_nodes, ruleset, more)
        timed("element", table.apply_delta, ruleset, other)
    return {key: series(samples) for key, samples in found.items()}


def _compiled(site: Site, nodes: Nodes) -> Ruleset:
    return compile_ruleset(FirewallPlan(site.own.subnet, site.config, site.backend.tunnel, nodes))


def _alone(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)
