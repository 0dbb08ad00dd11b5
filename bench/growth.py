"""How a join grows with the number of peers, as a table and as a picture."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from bench import floors
from bench.bed import bed
from bench.cold_join import Join, measure
from bench.options import Options
from bench.series import Series, ratio, series
from bench.svg import Line, Panel, picture
from bench.table import Table

PICTURE: Final = Path(__file__).resolve().parents[1] / "docs" / "growth.svg"
_SIZES: Final = (10, 30, 100, 300, 1000, 3000, 10000, 20000)
_QUICK: Final = (10, 30)
_COLUMNS: Final = (
    *("agent", "peers", "wall s", "CPU s", "peak MiB", "etcd requests"),
    *("listing alone s", "netlink alone s", "wall / floor", "wall grows as peers to the power of"),
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
    rounds = options.pick(1, 3, 5)
    found: dict[str, dict[int, list[Join]]] = {agent.name: {} for agent in options.agents}
    netlink: dict[int, Series] = {}
    with bed(are_leases_own=options.are_leases_own) as test:
        for count in sizes:
            netlink[count], _ = floors.netlink_s(test, 0, count, rounds)
            for _ in range(rounds):
                for agent in options.agents:
                    join = measure(agent, test, count, away=False)
                    found[agent.name].setdefault(count, []).append(join)
    rows, records = [], []
    for name, joins_by_size in found.items():
        before: tuple[int, float] | None = None
        for count, joins in joins_by_size.items():
            now = (count, _of(joins, "wall_s").median)
            rows.append((name, f"{count:,}", *_cells(joins, netlink[count]), _power(before, now)))
            runs = [asdict(join) for join in joins]
            record = {"agent": name, "peers": count, "runs": runs}
            records.append({**record, "netlink_s": netlink[count].samples})
            before = now
    notes: tuple[str, ...] = ()
    if sizes is _SIZES:
        PICTURE.write_text(picture(panels(found, netlink)))
        notes = (f"Drawn in `docs/{PICTURE.name}`.",)
    yield Table(_COLUMNS, tuple(rows), tuple(records), notes)


def panels(
    found: Mapping[str, Mapping[int, Sequence[Join]]], netlink: Mapping[int, Series]
) -> list[Panel]:
    """Return the diagrams of medians: a line an agent, and the floor beside the time."""
    made = []
    for field, title in _PANELS.items():
        lines = [
            Line(name, tuple((n, _of(joins, field).median) for n, joins in by_size.items()))
            for name, by_size in found.items()
        ]
        if field == "wall_s":
            first = next(iter(found.values()))
            points = tuple(
                (n, _of(joins, "list_s").median + netlink[n].median) for n, joins in first.items()
            )
            lines.append(Line("listing and netlink alone", points, is_dashed=True))
        made.append(Panel(title, tuple(lines)))
    return made


def _of(joins: Sequence[Join], field: str) -> Series:
    return series([float(getattr(join, field)) for join in joins])


def _cells(joins: Sequence[Join], netlink: Series) -> tuple[str, ...]:
    listing, wall = _of(joins, "list_s"), _of(joins, "wall_s")
    return (
        wall.spread(),
        _of(joins, "cpu_s").spread(),
        _of(joins, "peak_mib").spread(1, 0),
        f"{_of(joins, 'requests').median:.0f}",
        listing.spread(1, 3),
        netlink.spread(1, 3),
        ratio(wall.median, listing.median + netlink.median),
    )


def _power(before: tuple[int, float] | None, now: tuple[int, float]) -> str:
    """Return the exponent between two sizes: 1 is linear, 2 quadratic."""
    if before is None:
        return "-"
    return f"{math.log(now[1] / before[1]) / math.log(now[0] / before[0]):.2f}"
