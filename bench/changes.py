"""A thousand leases added on top of a thousand, and those removed again."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

from bench import agents, cold_join, floors, peers
from bench.bed import Bed, bed
from bench.entries import Entries, KernelEntries, collected
from bench.options import AgentCommand, Options
from bench.series import Series, ratio, series
from bench.table import Table
from overlay.lab import netns

_COLUMNS: Final = (
    *("agent", "change", "etcd", "wall s", "CPU s"),
    *("etcd's own writes s", "netlink alone s", "wall / floor"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """Seconds from the first write to the last entry, of the writes alone, and of the agent."""

    wall_s: float
    writes_s: float
    cpu_s: float


def run(options: Options) -> Iterator[Table]:
    """Return one table; the writes are transactions of a hundred, always near to etcd."""
    count = options.pick(50, 1000, 1000)
    rounds = options.pick(1, 3, 5)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, object]] = []
    with bed(are_leases_own=options.are_leases_own) as test:
        netlink = floors.netlink_s(test, count, 2 * count, rounds)
        for away in options.pick((False,), (False, True), (False, True)):
            found: dict[str, list[tuple[Change, Change]]] = {a.name: [] for a in options.agents}
            for _ in range(rounds):
                for agent in options.agents:
                    found[agent.name].append(_measure(agent, test, count, away=away))
            for name, pairs in found.items():
                for index, verb in enumerate(("add", "remove")):
                    changes = [pair[index] for pair in pairs]
                    change = f"{verb} {count:,}"
                    place = "3 ms away" if away else "near"
                    rows.append((name, change, place, *_cells(changes, netlink[index])))
                    runs = [asdict(each) for each in changes]
                    record = {"agent": name, "change": change, "away": away, "runs": runs}
                    records.append({**record, "netlink_s": netlink[index].samples})
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(agent: AgentCommand, test: Bed, count: int, *, away: bool) -> tuple[Change, Change]:
    test.write(peers.CONFIG, count)
    more = test.pairs(range(count, 2 * count))
    with (
        test.node() as node,
        netns.inside(node.namespace, KernelEntries) as entries,
        collected(),
        agents.running(agent, test, node, away=away) as running,
    ):
        cold_join.joined(entries, running, count)
        wanted = peers.entries(range(2 * count))
        added = _timed(entries, running, wanted, lambda: test.put(more))
        wanted = {**wanted, **peers.gone(range(count, 2 * count))}
        removed = _timed(entries, running, wanted, lambda: test.etcd.delete_all(more))
    return added, removed


def _timed(
    entries: KernelEntries, running: agents.Running, wanted: Entries, write: Callable[[], None]
) -> Change:
    entries.expect(wanted)
    before = running.usage.cpu_s
    started = time.perf_counter()
    write()
    written = time.perf_counter()
    _, changed_at = entries.wait(
        cold_join.LIMIT_S, lambda: running.is_alive, quiet_s=cold_join.QUIET_S
    )
    entries.verify()
    return Change(changed_at - started, written - started, running.usage.cpu_s - before)


def _cells(changes: list[Change], netlink: Series) -> tuple[str, ...]:
    def of(field: str) -> Series:
        return series([float(getattr(change, field)) for change in changes])

    floor = of("writes_s").median + netlink.median
    return (
        of("wall_s").spread(),
        of("cpu_s").spread(),
        of("writes_s").spread(),
        netlink.spread(1, 3),
        ratio(of("wall_s").median, floor),
    )
