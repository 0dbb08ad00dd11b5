"""N leases, up to 100,000, through parser, planner, diff and filter, without a kernel or an etcd.

Each size in a process of its own (``python -m bench.simulation N EVENTS``), for the
memory. One event is a lease that comes: its value parsed, a view made, the plan
brought in step, the touched objects compared, the set of nodes changed.
"""

import gc
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, ip_interface
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.options import Options
from bench.peers import PREFIX, owner
from bench.series import series
from bench.table import Table
from bench.tables import LENGTH, subnet
from bench.usage import memory_mib
from overlay.model.address import Family
from overlay.model.kernel import KernelObject, Key, Op
from overlay.model.lease import Lease, LeaseAttributes, LeaseView, format_attributes
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity, Underlay, vtep_mac
from overlay.model.subnet import Subnet
from overlay.plan.diff import difference
from overlay.plan.planner import Planner, Site
from overlay.plan.registry import load_backend
from overlay.policy.egress import FirewallPlan, compile_ruleset, with_nodes
from overlay.store.etcd_table import KeyValue, LeaseReader, LeaseTable, Listing

T = TypeVar("T")

_CONFIG: Final = (
    f'{{"Network": "10.0.0.0/8", "SubnetLen": {LENGTH}, "SubnetMin": "10.0.1.0", '
    '"Backend": {"Type": "vxlan", "VNI": 1}}'
)
_PUBLIC: Final = (172 << 24) + (17 << 16)
_MOST_ROUNDS: Final = 10_000  # leases, above which one round is long enough
_STEPS: Final = ("view", "plan", "diff", "filter")
_COLUMNS: Final = (
    *("leases", "values MB", "zlib MB", "parsed s", "planned s", "compared s", "MiB in all"),
    *("one event: view us", "planned us", "compared us", "filter us"),
)


def table(options: Options) -> Table:
    """Return the table."""
    sizes = options.pick((100,), (100, 1_000, 10_000, 100_000), (100, 1_000, 10_000, 100_000))
    rounds = options.pick(1, 3, 5)
    events = options.pick(3, 100, 300)
    rows: list[tuple[str, ...]] = []
    records: list[Mapping[str, Any]] = []
    for size in sizes:
        found = [_child(size, events) for _ in range(rounds if size <= _MOST_ROUNDS else 1)]
        cells = [series([each[key] for each in found]) for key in ("parse", "planner", "compare")]
        steps = [series([s for each in found for s in each[step]]) for step in _STEPS]
        rows.append(
            (
                f"{size:,}",
                *(f"{found[0][key] / 1e6:.2f}" for key in ("bytes", "zipped")),
                *(each.spread(1, 3) for each in cells),
                series([each["mib"] for each in found]).spread(1, 0),
                *(each.tail(1e6, 0) for each in steps),
            )
        )
        records.append({"leases": size, "runs": found})
    return Table(_COLUMNS, tuple(rows), tuple(records))


def _child(size: int, events: int) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "bench.simulation", str(size), str(events)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


class _Fabric:
    """One node's agent, as far as it decides: no kernel, no store, no clock."""

    def __init__(self) -> None:
        config = parse_network_config(_CONFIG)
        family, public = Family.IPV4, IPv4Address("172.16.0.1")
        underlay = Underlay("eth0", 1500, {family: ip_interface("172.16.0.1/12")}, {family: public})
        own = Lease(Subnet(IPv4Network(f"10.0.1.0/{LENGTH}")), LeaseAttributes("vxlan"))
        backend = load_backend(config, NodeIdentity("bench", "bench"))
        self.leases = LeaseTable(LeaseReader(f"{PREFIX}/"))
        self.planner = Planner(Site(config, backend, own, underlay))
        self.mirror: dict[Key, KernelObject] = {}
        plan = FirewallPlan(own.subnet, config, backend.tunnel)
        self.ruleset = compile_ruleset(plan)

    def list(self, values: Sequence[KeyValue]) -> Mapping[str, float]:
        """Take in all leases; return the seconds of each step. Raises RuntimeError."""
        found = Clock()
        found.timed("parse", lambda: self.leases.replace(Listing(len(values), 1, tuple(values))))
        found.timed("planner", lambda: self.planner.update(self.leases.view().leases))
        objects = self.planner.plan.objects
        ops = found.timed("compare", lambda: difference(objects, self.mirror))
        if len(self.planner.plan.peers) != len(values) or len(ops) != len(objects):
            msg = f"of {len(values)} leases {len(self.planner.plan.peers)} are peers"
            raise RuntimeError(msg)
        self.mirror = dict(objects)
        self._filter()
        return found.seconds

    def hear(self, event: KeyValue) -> Mapping[str, float]:
        """Take in one change; return the seconds of each step. Raises RuntimeError."""
        found = Clock()
        view = found.timed("view", lambda: self._view(event))
        touched = found.timed("plan", lambda: self.planner.update(view.leases))
        ops = found.timed("diff", lambda: self._compare(touched))
        if not ops:
            msg = f"{event.key!r} changed nothing"
            raise RuntimeError(msg)
        self.mirror.update((op.target.key, op.target) for op in ops)
        found.timed("filter", self._filter)
        return found.seconds

    def _view(self, event: KeyValue) -> LeaseView:
        self.leases.apply([event])
        return self.leases.view()

    def _compare(self, touched: Iterable[Key]) -> tuple[Op, ...]:
        objects, mirror = self.planner.plan.objects, self.mirror
        wanted = {key: objects[key] for key in touched if key in objects}
        return difference(wanted, {key: mirror[key] for key in touched if key in mirror})

    def _filter(self) -> None:
        after = with_nodes(self.ruleset, self.planner.plan.addresses())
        after.changes(self.ruleset)
        self.ruleset = after


class Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, step: str, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, and note how long it took."""
        started = time.perf_counter()
        result = work()
        self.seconds[step] = time.perf_counter() - started
        return result


def simulate(size: int, events: int) -> Mapping[str, Any]:
    """Return seconds by step, of each event where there are many; bytes, and MiB of growth."""
    values = [_stored(number) for number in range(size + events)]
    listed, more = values[:size], values[size:]
    packed = b"".join(each.value or b"" for each in listed)
    sizes = {"bytes": len(packed), "zipped": len(zlib.compress(packed, 1))}
    del packed
    fabric = _Fabric()
    gc.collect()
    gc.freeze()
    before = _resident_mib()
    found = {**sizes, **fabric.list(listed), "mib": _resident_mib() - before}
    heard = [fabric.hear(event) for event in more]
    return {**found, **{step: [each[step] for each in heard] for step in _STEPS}}


def _stored(number: int) -> KeyValue:
    """Return a lease as one of our agents writes it."""
    mac = vtep_mac(f"peer{number}", 1, Family.IPV4)
    lease = Lease(
        Subnet(IPv4Network((subnet(number), LENGTH))),
        LeaseAttributes(
            "vxlan",
            {Family.IPV4: IPv4Address(_PUBLIC + number)},
            {Family.IPV4: {"VNI": 1, "VtepMAC": mac}},
            owner(number),
        ),
    )
    key = f"{PREFIX}/subnets/{lease.subnet.key}".encode()
    return KeyValue(key, format_attributes(lease.attributes), number + 1, number + 1, number + 1)


def _resident_mib() -> float:
    return memory_mib(Path("/proc/self/status").read_text(), "VmRSS")


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 20)  # as overlayd does
    print(json.dumps(simulate(int(sys.argv[1]), int(sys.argv[2]))))
