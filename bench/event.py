"""One event: a lease is put until its route is there, beside etcd's own answer to the put."""

import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench import agents, cold_join, peers
from bench.bed import Bed, bed
from bench.entries import KernelEntries, NotRightError, collected
from bench.gateway import is_whole
from bench.options import AgentCommand, Options
from bench.series import ratio, series
from bench.table import Table
from overlay.lab import netns

_LIMIT_S: Final = 10.0
_PAUSE_S: Final = 0.01  # between events, so that each meets an idle agent
_COLUMNS: Final = (
    *("agent", "peers", "events", "etcd's answer ms, p50 / p99", "route there ms, p50 / p99"),
    *("beyond the answer ms, p50 / p99", "CPU ms each", "route / answer"),
)


@dataclass(frozen=True, slots=True)
class Events:
    """Seconds from the put to etcd's answer and to the route, of each; CPU of the agent for one."""

    answers_s: tuple[float, ...]
    routes_s: tuple[float, ...]
    cpu_s: float


def run(options: Options) -> Iterator[Table]:
    """Return one table. Answer and route are awaited together: the route may come first."""
    sizes = options.pick((50,), (100, 1000, 5000), (100, 1000, 5000, 20000))
    number = options.pick(10, 200, 500)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, object]] = []
    with bed(are_leases_own=options.are_leases_own) as test:
        for size in sizes:
            for agent in options.agents:
                found = _measure(agent, test, size, number)
                pairs = zip(found.routes_s, found.answers_s, strict=True)
                beyond = series([route - answer for route, answer in pairs])
                answers, routes = series(found.answers_s), series(found.routes_s)
                rows.append(
                    (
                        *(agent.name, f"{size:,}", str(number)),
                        *(each.tail(1000, 2) for each in (answers, routes, beyond)),
                        f"{1000 * found.cpu_s:.2f}",
                        ratio(routes.median, answers.median),
                    )
                )
                records.append(
                    {
                        "agent": agent.name,
                        "peers": size,
                        "answers_s": found.answers_s,
                        "routes_s": found.routes_s,
                        "cpu_s": found.cpu_s,
                    }
                )
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(agent: AgentCommand, test: Bed, size: int, number: int) -> Events:
    test.write(peers.CONFIG, size)
    with (
        test.node() as node,
        netns.inside(node.namespace, KernelEntries) as entries,
        collected(),
        agents.running(agent, test, node) as running,
    ):
        cold_join.joined(entries, running, size)
        before = running.usage.cpu_s
        found = [_one(test, entries, size + each) for each in range(number)]
        cpu_s = (running.usage.cpu_s - before) / number
    return Events(tuple(a for a, _ in found), tuple(r for _, r in found), cpu_s)


def _one(test: Bed, entries: KernelEntries, number: int) -> tuple[float, float]:
    """Put one lease; return the seconds to etcd's answer, and to the last of its entries."""
    time.sleep(_PAUSE_S)
    ((key, value),) = test.pairs([number]).items()
    request = test.put_request(key, value)
    entries.read()
    entries.expect(peers.entries([number]))
    connection = test.etcd.socket
    started = time.perf_counter()
    connection.sendall(request)
    text = b""
    answer: float | None = None
    route: float | None = None
    while answer is None or route is None:
        ready, _, _ = select.select([connection, entries], [], [], _LIMIT_S)
        now = time.perf_counter()
        if not ready:
            msg = f"neither route nor answer for {_LIMIT_S:g} s"
            raise NotRightError(msg)
        if connection in ready:
            text += connection.recv(1 << 16)
            answer = now - started if is_whole(text) else None
        if entries in ready:
            entries.read()
            route = now - started if entries.is_right and route is None else route
    return answer, route
