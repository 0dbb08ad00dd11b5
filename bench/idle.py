"""An agent that has nothing to do: its memory, and what it uses meanwhile."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from bench import agents, cold_join
from bench.bed import bed
from bench.entries import KernelEntries
from bench.options import Options
from bench.table import Table
from overlay.lab import netns

_COLUMNS: Final = (
    *("agent", "peers", "idle s", "memory idle MiB", "memory at peak MiB"),
    *("CPU of the join s", "CPU while idle s", "idle CPU of a core"),
)


def run(options: Options) -> Iterator[Table]:
    """Return one table. All agents are idle at the same time, each in a node of its own."""
    sizes = options.pick((50,), (1000, 5000), (100, 1000, 5000, 20000))
    idle_s = options.idle_s or options.pick(1.0, 60.0, 60.0)
    started: list[tuple[str, int, agents.Running]] = []
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, object]] = []
    with contextlib.ExitStack() as stack:
        for size in sizes:
            test = stack.enter_context(bed(peers=size))
            for number, agent in enumerate(options.agents, 1):
                node = stack.enter_context(test.node(number))
                running = stack.enter_context(agents.running(agent, test, node))
                with netns.inside(node.namespace, KernelEntries) as entries:
                    cold_join.joined(entries, running, size)
                started.append((agent.name, size, running))
        before = [running.usage for _, _, running in started]
        time.sleep(idle_s)
        for (name, size, running), then in zip(started, before, strict=True):
            now = running.usage
            used = now.cpu_s - then.cpu_s
            rows.append(
                (
                    *(name, f"{size:,}", f"{idle_s:g}", f"{now.rss_mib:.0f}"),
                    *(f"{now.peak_mib:.0f}", f"{then.cpu_s:.2f}", f"{used:.2f}"),
                    f"{used / idle_s:.2%}",
                )
            )
            records.append(
                {
                    "agent": name,
                    "peers": size,
                    "idle_s": idle_s,
                    "rss_mib": now.rss_mib,
                    "peak_mib": now.peak_mib,
                    "join_cpu_s": then.cpu_s,
                    "idle_cpu_s": used,
                }
            )
    yield Table(_COLUMNS, tuple(rows), tuple(records))
