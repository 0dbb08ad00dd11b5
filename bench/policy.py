"""Network policies at the size of a cluster: compiled, applied, changed; their cost to traffic.

Memory is what a process of its own grows by at its peak while it compiles.
Traffic runs between two namespaces through a third with the table, and
without it, in turns; connections are tracked there all the time.
"""

import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import iperf, packets
from bench.bed import namespace
from bench.clusters import CLIENT, HERE, cluster, elsewhere, relabeled, server
from bench.options import Options
from bench.policy_agent import changes_by_an_agent
from bench.series import ratio, series
from bench.table import Table
from bench.usage import memory_mib
from overlay.lab import netns
from overlay.model.netpol import Pod
from overlay.policy.network.compile import PolicyCompiler, compile_policies

_COLUMNS: Final = (
    *("policies", "pods", "on the node", "elements", "whole: compiled ms", "CPU ms", "MiB at peak"),
    *("applied ms", "CPU ms", "nft MiB", "a label: compiled ms", "in force ms", "CPU ms"),
    *("in force by the agent, others writing ms", "nft alone ms"),
)
# A node of ours tracks connections with policies or without: its masquerading does.
_TRACKING: Final = """
table inet bench {
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "none" masquerade
	}
}
"""
_OWN: Final = resource.RUSAGE_SELF
_CHILDREN: Final = resource.RUSAGE_CHILDREN
_TRAFFIC: Final = ("what", "without", "with", "of it")
_TITLES: Final = {
    "tcp": ("TCP 1 stream Gbit/s", 1e-9, 2),
    "udp": ("UDP packets/s, thousands", 1e-3, 0),
    "answered": ("CPU of a packet, sent and forwarded, us", 1e6, 2),
    "unanswered": ("the same before the first answer, us", 1e6, 2),
}


@dataclass(slots=True)
class Found:
    """Seconds by what took them, and processor seconds, those of ``nft`` among them."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    elements: int = 0
    nft_mib: float = 0.0

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Note how long the block takes."""
        started, before = time.perf_counter(), _cpu_s()
        yield
        self.wall.setdefault(what, []).append(time.perf_counter() - started)
        self.cpu.setdefault(what, []).append(_cpu_s() - before)


def run(options: Options) -> Iterator[Table]:
    """Return a table of times, and one of traffic; in namespaces of their own."""
    sizes = options.pick(
        ((100, 500, 50),),
        ((100, 500, 100), (1000, 5000, 100)),
        ((100, 500, 100), (1000, 5000, 100), (5000, 20000, 200)),
    )
    rounds = options.pick(2, 7, 15)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for size in sizes:
        memory = _memory_mib(size)
        with namespace() as name:
            found = netns.inside(name, functools.partial(_measure, size, rounds))
        wall = {key: series(each).spread(1000, 1) for key, each in found.wall.items()}
        cpu = {key: series(each).spread(1000, 0) for key, each in found.cpu.items()}
        rows.append(
            (
                *(f"{number:,}" for number in (*size, found.elements)),
                *(wall["compile"], cpu["compile"], f"{memory:.0f}"),
                *(wall["apply"], cpu["apply"], f"{found.nft_mib:.0f}"),
                *(wall["change"], wall["in force"], cpu["in force"]),
                *(wall["agent"], wall["nft"]),
            )
        )
        records.append({"size": size, "mib": memory, "wall_s": found.wall, "cpu_s": found.cpu})
    yield Table(_COLUMNS, tuple(rows), tuple(records))
    yield _traffic(sizes[-1 if len(sizes) < 3 else 1], options)


def _measure(size: tuple[int, int, int], rounds: int) -> Found:
    found = Found()
    world = cluster(*size)
    key = elsewhere(world)
    nft("add table inet bench\nadd set inet bench few { type ipv4_addr; }")
    for _ in range(rounds):
        compiler = PolicyCompiler(HERE)
        with found.timed("compile"):
            ruleset = compiler.update(world)
        with found.timed("apply"):
            found.nft_mib = max(found.nft_mib, nft(ruleset.transaction))
        found.elements = sum(len(each.elements) for each in ruleset.sets.values())
        for app in (3, 1):  # of those who are asked about, and not
            changed = relabeled(world, key, app)
            with found.timed("in force"):
                with found.timed("change"):
                    after = compiler.update(changed)
                    delta = after.delta(ruleset)
                nft(after.transaction if delta is None else delta)
            ruleset = after
        with found.timed("nft"):
            nft("add element inet bench few { 192.0.2.1 }")
    found.wall["agent"] = changes_by_an_agent(world, key, 4 * rounds)
    return found


def nft(text: str) -> float:
    """Run one transaction, where there is anything to do; return the MiB that nft took."""
    if not text:
        return 0.0
    with tempfile.TemporaryFile() as given:
        given.write(text.encode())
        given.seek(0)
        running = subprocess.Popen(["nft", "-f", "-"], stdin=given)
        _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, "nft")
    return used.ru_maxrss / 1024  # KiB


def compile_once(size: tuple[int, int, int]) -> float:
    """Return the MiB that this process grows by at its peak while it compiles: proc(5)."""
    world = cluster(*size)
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_mib(status.read_text(), "VmRSS")
    compile_policies(world, HERE)
    return memory_mib(status.read_text(), "VmHWM") - before


def _memory_mib(size: tuple[int, int, int]) -> float:
    words = f"from bench.policy import compile_once; print(compile_once({size!r}))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def _cpu_s() -> float:
    own, children = (resource.getrusage(who) for who in (_OWN, _CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _traffic(size: tuple[int, int, int], options: Options) -> Table:
    """Return what an allowed connection gets with the table in its way, and without."""
    seconds = options.pick(0, 2, 5)
    rounds = options.pick(1, 5, 9)
    count = options.pick(1_000, 200_000, 500_000)
    world = cluster(*size)
    pod = server(world)
    ruleset = compile_policies(world, HERE)
    without = "table inet overlay_policy {}\ndelete table inet overlay_policy\n"
    found: dict[tuple[str, str], list[float]] = {}
    with _row(pod) as (node, path), iperf.echo_server(path.target):
        netns.inside(node, functools.partial(nft, _TRACKING))
        for _ in range(rounds):
            for name, text in (("without", without), ("with", ruleset.transaction)):
                netns.inside(node, functools.partial(nft, text))
                found.setdefault(("tcp", name), []).append(iperf.tcp(path, seconds, 1).bits_per_s)
                found.setdefault(("udp", name), []).append(iperf.udp(path, seconds))
                for what in ("answered", "unanswered"):
                    cost_s = packets.cost_s(path, count, is_answered=what == "answered")
                    found.setdefault((what, name), []).append(cost_s)
    rows = []
    for key, (title, scale, digits) in _TITLES.items():
        bare, judged = (series(found[key, name]) for name in ("without", "with"))
        shares = (bare.spread(scale, digits), judged.spread(scale, digits))
        better, worse = (bare, judged) if title.endswith("us") else (judged, bare)
        rows.append((title, *shares, ratio(better.median, worse.median, 2)))
    records = tuple(
        {"what": what, "table": name, "samples": samples} for (what, name), samples in found.items()
    )
    return Table(_TRAFFIC, tuple(rows), records)


@contextlib.contextmanager
def _row(pod: Pod) -> Iterator[tuple[str, iperf.Path]]:
    """Make a client, a node and a pod in a row; yield the node's namespace and the path."""
    address = next(each for each in pod.addresses if each.version == 4)
    with namespace() as client, namespace() as node, namespace() as target:
        netns.ip_batch(
            node,
            [
                f"link add up0 type veth peer name eth0 netns {client}",
                f"link add opod1 type veth peer name eth0 netns {target}",
                "addr add 172.16.9.254/24 dev up0",
                "link set up0 up",
                "link set opod1 up",
                f"route add {address} dev opod1",
            ],
        )
        netns.inside(node, lambda: netns.write_sysctls({"ipv4/ip_forward": "1"}))
        netns.inside(node, lambda: netns.write_sysctls({"ipv4/conf/opod1/proxy_arp": "1"}))
        netns.ip_batch(
            client,
            [f"addr add {CLIENT}/24 dev eth0", "link set eth0 up",
             "route add default via 172.16.9.254"],
        )  # fmt: skip
        netns.ip_batch(
            target,
            [f"addr add {address}/32 dev eth0", "link set eth0 up", "route add default dev eth0"],
        )
        yield node, iperf.Path("through a node", client, target, str(address))
