"""Pod to pod across nodes and on one node, against node to node, in turns."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench import agents, iperf
from bench.bed import Bed, Node, bed
from bench.iperf import Path
from bench.options import AgentCommand, Options
from bench.pods import pods
from bench.ready import await_routes
from bench.series import ratio, series
from bench.table import Table

_UNDERLAY: Final = "node to node"


@dataclass(frozen=True, slots=True)
class Measure:
    """One kind of figure: how it is shown, and whether less of it is better."""

    title: str
    scale: float
    digits: int
    is_time: bool = False


MEASURES: Final = {
    "tcp1": Measure("TCP 1 stream Gbit/s", 1e-9, 2),
    "tcp4": Measure("TCP 4 streams Gbit/s", 1e-9, 2),
    "udp": Measure("UDP packets/s, thousands", 1e-3, 0),
    "round_trip": Measure("round trip us", 1e6, 1, is_time=True),
    "requests": Measure("requests/s, thousands", 1e-3, 1),
    "connections": Measure("connections/s, thousands", 1e-3, 1),
}
_COLUMNS: Final = ("agent", "what", _UNDERLAY, "pod to pod", "of it", "pods of one node", "of it")

Samples = dict[tuple[str, str], list[float]]  # by measure and path


def run(options: Options) -> Iterator[Table]:
    """Return one table; "of it" is the median's part of the underlay's."""
    seconds = options.pick(0, 2, 5)
    rounds = options.pick(1, 3, 5)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for agent in options.agents:
        with bed() as test, _fabric(agent, test) as paths:
            found = _measure(paths, rounds, seconds)
        for key, measure in MEASURES.items():
            rows.append((agent.name, measure.title, *_cells(measure, key, found, paths)))
        records += [
            {"agent": agent.name, "what": what, "path": path, "samples": samples}
            for (what, path), samples in found.items()
        ]
    yield Table(_COLUMNS, tuple(rows), tuple(records))


@contextlib.contextmanager
def _fabric(agent: AgentCommand, test: Bed) -> Iterator[list[Path]]:
    """Make two nodes with two pods each, and echo servers at the far ends; yield the paths."""
    with contextlib.ExitStack() as stack:
        nodes: list[Node] = [stack.enter_context(test.node(number)) for number in (1, 2)]
        running = [stack.enter_context(agents.running(agent, test, node)) for node in nodes]
        await_routes(nodes, running)
        here, there = (stack.enter_context(pods(agent, node, 2)) for node in nodes)
        targets = {nodes[1].namespace, there[0][0], here[1][0]}
        for namespace in targets:
            stack.enter_context(iperf.echo_server(namespace))
        yield [
            Path(_UNDERLAY, nodes[0].namespace, nodes[1].namespace, nodes[1].address),
            Path("pod to pod", here[0][0], *there[0]),
            Path("pods of one node", here[0][0], *here[1]),
        ]


def _measure(paths: list[Path], rounds: int, seconds: int) -> Samples:
    found: Samples = {(key, path.name): [] for key in MEASURES for path in paths}
    for _ in range(rounds):
        for path in paths:
            echoes = iperf.echoes(path, seconds or 0.1)
            once = {
                "tcp1": iperf.tcp(path, seconds, 1),
                "tcp4": iperf.tcp(path, seconds, 4),
                "udp": iperf.udp(path, seconds),
                "round_trip": echoes.round_trip_s,
                "requests": echoes.requests_per_s,
                "connections": echoes.connections_per_s,
            }
            for key, value in once.items():
                found[key, path.name].append(value)
    return found


def _cells(measure: Measure, key: str, found: Samples, paths: list[Path]) -> list[str]:
    floor = series(found[key, _UNDERLAY])
    cells = [floor.spread(measure.scale, measure.digits)]
    for path in paths[1:]:
        samples = series(found[key, path.name])
        part = ratio(samples.median, floor.median, 2)
        cells += [samples.spread(measure.scale, measure.digits), part]
    return cells
