"""Cold join: from the start of an agent until every entry of N peers is in the kernel."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from bench import agents, floors, peers
from bench.bed import Bed, Node, bed
from bench.entries import KernelEntries, NotRightError, collected
from bench.options import AgentCommand, Options
from bench.series import Series, ratio, series
from bench.table import Table
from overlay.lab import netns

LIMIT_S: Final = 180.0
QUIET_S: Final = 0.4  # without a change, after which nothing more is expected


@dataclass(frozen=True, slots=True)
class Join:
    """One join: seconds from exec to the last change, CPU seconds, peak memory, the listing."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    requests: int  # messages that etcd received
    list_s: float


def joined(
    entries: KernelEntries, running: agents.Running, wanted: int, quiet_s: float = QUIET_S
) -> float:
    """Wait until the entries of ``wanted`` peers are there; return when the last change was.

    Raises NotRightError with the end of the agent's log.
    """
    entries.expect(peers.entries(range(wanted)))
    try:
        _, changed_at = entries.wait(LIMIT_S, lambda: running.is_alive, quiet_s)
        entries.verify()
    except NotRightError as exc:
        msg = f"{exc}\n{running.log_tail}"
        raise NotRightError(msg) from exc
    return changed_at


def measure(agent: AgentCommand, test: Bed, count: int, *, away: bool) -> Join:
    """Make one cold join in a new node, with ``count`` peers in etcd."""
    test.write(peers.CONFIG, count)
    with test.node() as node:
        list_s = floors.listing_s(test, node, away=away)
        return _measure_in(node, agent, test, count, list_s, away=away)


def _measure_in(
    node: Node,
    agent: AgentCommand,
    test: Bed,
    count: int,
    list_s: float,
    *,
    away: bool,
) -> Join:
    with netns.inside(node.namespace, KernelEntries) as entries, collected():
        before = sum(test.etcd.received().values())
        with agents.running(agent, test, node, away=away) as running:
            changed_at = joined(entries, running, count)
            used = running.usage
            requests = sum(test.etcd.received().values()) - before
    wall_s = changed_at - running.started_at
    return Join(wall_s, used.cpu_s, used.peak_mib, requests, list_s)


def run(options: Options) -> Iterator[Table]:
    """Return one table: sizes, near and away, agent by agent."""
    sizes = options.pick((100,), (100, 1000, 5000), (100, 1000, 5000, 20000))
    rounds = options.pick(1, 3, 5)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, object]] = []
    with bed(are_leases_own=options.are_leases_own) as test:
        for count in sizes:
            netlink, _ = floors.netlink_s(test, 0, count, rounds)
            for away in (False, True):
                found: dict[str, list[Join]] = {agent.name: [] for agent in options.agents}
                for _ in range(rounds):  # in turns, so that a busy moment meets all
                    for agent in options.agents:
                        found[agent.name].append(measure(agent, test, count, away=away))
                for name, joins in found.items():
                    rows.append(_row(name, count, joins, netlink, away=away))
                    runs = [asdict(join) for join in joins]
                    record = {"agent": name, "peers": count, "away": away, "runs": runs}
                    records.append({**record, "netlink_s": netlink.samples})
    yield Table(_COLUMNS, tuple(rows), tuple(records))


_COLUMNS: Final = (
    *("agent", "peers", "etcd", "wall s", "CPU s", "peak MiB", "etcd requests"),
    *("listing alone s", "netlink alone s", "wall / floor"),
)


def _row(
    name: str, count: int, joins: list[Join], netlink: Series, *, away: bool
) -> tuple[str, ...]:
    def of(field: str) -> Series:
        return series([float(getattr(join, field)) for join in joins])

    floor = of("list_s").median + netlink.median
    return (
        name,
        f"{count:,}",
        "3 ms away" if away else "near",
        of("wall_s").spread(),
        of("cpu_s").spread(),
        of("peak_mib").spread(1, 0),
        f"{of('requests').median:.0f}",
        of("list_s").spread(1, 3),
        netlink.spread(1, 3),
        ratio(of("wall_s").median, floor),
    )
