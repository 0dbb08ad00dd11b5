"""How a join grows with the number of peers, as a table and as a picture."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from bench import floors
from bench.bed import bed
from bench.cold_join import Join, measure
from bench.options import Options
from bench.svg import Line, Panel, picture
from bench.table import Table

PICTURE: Final = Path(__file__).resolve().parents[1] / "docs" / "growth.svg"
_SIZES: Final = (10, 30, 100, 300, 1000, 3000, 10000, 20000)
_QUICK: Final = (10, 30)
_COLUMNS: Final = (
    *("agent", "peers", "wall s", "CPU s", "peak MiB", "etcd requests"),
    *("listing alone s", "netlink alone s", "wall grows as peers to the power of"),
)
_PANELS: Final = {
    "wall_s": "Seconds until all is right, by peers",
    "cpu_s": "CPU seconds of the join",
    "peak_mib": "Peak memory, MiB",
    "requests": "Messages that etcd receives",
}


def run(options: Options) -> Iterator[Table]:
    """Return one table, etcd near; write ``docs/growth.svg`` unless quick."""
    sizes = options.pick(_QUICK, _SIZES, _SIZES)
    rounds = options.pick(1, 1, 3)
    found: dict[str, dict[int, Join]] = {agent.name: {} for agent in options.agents}
    with bed() as test:
        for count in sizes:
            netlink_s = floors.netlink_s(test, 0, count)[0]
            for agent in options.agents:
                joins = [
                    measure(agent, test, count, away=False, netlink_s=netlink_s)
                    for _ in range(rounds)
                ]
                found[agent.name][count] = _median(joins)
    rows, records = [], []
    for name, joins_by_size in found.items():
        before: tuple[int, Join] | None = None
        for count, join in joins_by_size.items():
            rows.append((name, f"{count:,}", *_cells(join), _power(before, (count, join))))
            records.append({"agent": name, "peers": count, **asdict(join)})
            before = (count, join)
    notes: tuple[str, ...] = ()
    if sizes is _SIZES:
        PICTURE.write_text(picture(panels(found)))
        notes = (f"Drawn in `docs/{PICTURE.name}`.",)
    yield Table(_COLUMNS, tuple(rows), tuple(records), notes)


def panels(found: dict[str, dict[int, Join]]) -> list[Panel]:
    """Return the diagrams: a line an agent, and the floor beside the time."""
    made = []
    for field, title in _PANELS.items():
        lines = [
            Line(name, tuple((n, float(getattr(join, field))) for n, join in joins.items()))
            for name, joins in found.items()
        ]
        if field == "wall_s":
            joins = next(iter(found.values()))
            points = tuple((n, join.list_s + join.netlink_s) for n, join in joins.items())
            lines.append(Line("listing and netlink alone", points, is_dashed=True))
        made.append(Panel(title, tuple(lines)))
    return made


def _median(joins: list[Join]) -> Join:
    """Return the join whose time is the median (the lower one of two)."""
    return sorted(joins, key=lambda join: join.wall_s)[(len(joins) - 1) // 2]


def _cells(join: Join) -> tuple[str, ...]:
    return (
        f"{join.wall_s:.2f}",
        f"{join.cpu_s:.2f}",
        f"{join.peak_mib:.0f}",
        f"{join.requests:.0f}",
        f"{join.list_s:.3f}",
        f"{join.netlink_s:.3f}",
    )


def _power(before: tuple[int, Join] | None, now: tuple[int, Join]) -> str:
    """Return the exponent between two sizes: 1 is linear, 2 quadratic."""
    if before is None:
        return "-"
    return f"{math.log(now[1].wall_s / before[1].wall_s) / math.log(now[0] / before[0]):.2f}"
