"""An agent that has nothing to do: its memory, and what it uses meanwhile.

The floor of memory is a Python process that has imported gRPC and nothing of ours.
"""

import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from bench import agents, cold_join
from bench.bed import bed
from bench.entries import KernelEntries
from bench.options import Options
from bench.series import ratio, series
from bench.table import Table
from bench.usage import usage
from overlay.lab import netns

_COLUMNS: Final = (
    *("agent", "peers", "idle s", "memory idle MiB", "memory at peak MiB", "grpc alone MiB"),
    *("idle / alone", "CPU of the join s", "CPU while idle, s for 60 s", "of a core"),
)
_MINUTE_S: Final = 60


def run(options: Options) -> Iterator[Table]:
    """Return one table. All agents are idle at the same time, each in a node of its own.

    The time is cut into parts, for the spread of what is used in each.
    """
    sizes = options.pick((50,), (1000, 5000), (100, 1000, 5000, 20000))
    idle_s = options.idle_s or options.pick(1.0, 60.0, 60.0)
    parts = options.pick(2, 3, 6)
    started: list[tuple[str, int, agents.Running]] = []
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, object]] = []
    alone_mib = _alone_mib()
    with contextlib.ExitStack() as stack:
        for size in sizes:
            test = stack.enter_context(bed(peers=size, are_leases_own=options.are_leases_own))
            for number, agent in enumerate(options.agents, 1):
                node = stack.enter_context(test.node(number))
                running = stack.enter_context(agents.running(agent, test, node))
                with netns.inside(node.namespace, KernelEntries) as entries:
                    cold_join.joined(entries, running, size)
                started.append((agent.name, size, running))
        seen = [[running.usage for _, _, running in started]]
        for _ in range(parts):
            time.sleep(idle_s / parts)
            seen.append([running.usage for _, _, running in started])
        for (name, size, _), found in zip(started, zip(*seen, strict=True), strict=True):
            first, last = found[0], found[-1]
            steps = itertools.pairwise(found)
            minute = series([(b.cpu_s - a.cpu_s) * _MINUTE_S * parts / idle_s for a, b in steps])
            rows.append(
                (
                    *(name, f"{size:,}", f"{idle_s:g}"),
                    *(f"{value:.0f}" for value in (last.rss_mib, last.peak_mib, alone_mib)),
                    ratio(last.rss_mib, alone_mib),
                    *(f"{first.cpu_s:.2f}", minute.spread()),
                    f"{(last.cpu_s - first.cpu_s) / idle_s:.2%}",
                )
            )
            records.append(
                {
                    "agent": name,
                    "peers": size,
                    "idle_s": idle_s,
                    "rss_mib": last.rss_mib,
                    "peak_mib": last.peak_mib,
                    "alone_mib": alone_mib,
                    "join_cpu_s": first.cpu_s,
                    "idle_cpu_s": last.cpu_s - first.cpu_s,
                    "cpu_s_a_minute": minute.samples,
                }
            )
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _alone_mib() -> float:
    words = "import grpc, sys; print('up', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", words], stdin=pipe, stdout=pipe) as child:
        if child.stdout is None or not child.stdout.readline():
            raise RuntimeError("gRPC cannot be imported")
        found = usage(child.pid).rss_mib
        child.communicate()
    return found
