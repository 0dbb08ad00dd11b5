"""Pod to pod across nodes and on one node, against node to node, in turns."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bench import iperf
from bench.bed import bed
from bench.fabric import UNDERLAY, fabric
from bench.iperf import Path
from bench.options import Options
from bench.series import paired, series
from bench.table import Table


@dataclass(frozen=True, slots=True)
class Measure:
    """One kind of figure and how it is shown."""

    title: str
    scale: float
    digits: int


MEASURES: Final = {
    "tcp1": Measure("TCP 1 stream Gbit/s", 1e-9, 2),
    "tcp4": Measure("TCP 4 streams Gbit/s", 1e-9, 2),
    "udp": Measure("UDP packets/s, thousands", 1e-3, 0),
    "round_trip": Measure("round trip us", 1e6, 1),
    "requests": Measure("requests/s, thousands", 1e-3, 1),
    "connections": Measure("connections/s, thousands", 1e-3, 1),
}
_COLUMNS: Final = ("agent", "what", UNDERLAY, "pod to pod", "of it", "pods of one node", "of it")

Samples = dict[tuple[str, str], list[float]]  # by measure and path


def run(options: Options) -> Iterator[Table]:
    """Return one table; "of it" is the median of the rounds' own parts of the underlay's.

    The underlay of one machine swings by half from one minute to the next: what
    is compared was taken within seconds.
    """
    seconds = options.pick(0, 1, 3)
    rounds = options.pick(1, 9, 15)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for agent in options.agents:
        with bed() as test, fabric(agent, test) as made:
            paths = made.paths
            found = _measure(paths, rounds, seconds)
        for key, measure in MEASURES.items():
            rows.append((agent.name, measure.title, *_cells(measure, key, found, paths)))
        records += [
            {"agent": agent.name, "what": what, "path": path, "samples": samples}
            for (what, path), samples in found.items()
        ]
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(paths: list[Path], rounds: int, seconds: int) -> Samples:
    """Return the samples; one kind is taken on all paths before the next, from another first."""
    found: Samples = {(key, path.name): [] for key in MEASURES for path in paths}
    kinds: list[Callable[[Path], Mapping[str, float]]] = [
        lambda path: {"tcp1": iperf.tcp(path, seconds, 1).bits_per_s},
        lambda path: {"tcp4": iperf.tcp(path, seconds, 4).bits_per_s},
        lambda path: {"udp": iperf.udp(path, seconds)},
        lambda path: _echoes(path, seconds or 0.1),
    ]
    for number in range(rounds):
        turn = number % len(paths)
        for kind in kinds:
            for path in (*paths[turn:], *paths[:turn]):
                for key, value in kind(path).items():
                    found[key, path.name].append(value)
    return found


def _echoes(path: Path, seconds: float) -> Mapping[str, float]:
    echoes = iperf.echoes(path, seconds)
    return {
        "round_trip": echoes.round_trip_s,
        "requests": echoes.requests_per_s,
        "connections": echoes.connections_per_s,
    }


def _cells(measure: Measure, key: str, found: Samples, paths: list[Path]) -> list[str]:
    floor = found[key, UNDERLAY]
    cells = [series(floor).spread(measure.scale, measure.digits)]
    for path in paths[1:]:
        samples = found[key, path.name]
        cells.append(series(samples).spread(measure.scale, measure.digits))
        cells.append(paired(samples, floor).spread())
    return cells
