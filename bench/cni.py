"""CNI plugins executed as a runtime does it: ADD and DEL, one by one, ten at a time, 110 pods."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from bench import agents
from bench.bed import bed
from bench.chains import FLANNEL, FLOOR, STAND_IN, Chain, chains
from bench.options import AgentCommand, Options
from bench.ready import await_subnet
from bench.runtime import Calls, Runtime, build
from bench.series import ratio
from bench.table import Table
from overlay.lab import netns

AT_ONCE: Final = 10
MOST_PODS: Final = 110  # of a node: the kubelet's own limit
_EACH: Final = (
    *("plugin", "at once", "ADD ms, p50 / p99", "ADD CPU ms", "DEL ms, p50 / p99"),
    *("DEL CPU ms", "ADD / floor", "DEL / floor", "ADD / flannel", "DEL / flannel"),
)
_ALL: Final = (
    *("plugin", "pods", "all attached s", "ADD ms, p50 / p99", "all detached s"),
    *("DEL ms, p50 / p99", "ADD / flannel", "DEL / flannel"),
)

Pair: TypeAlias = Mapping[str, Calls]  # of ADD and of DEL


def run(options: Options) -> Iterator[Table]:
    """Return two tables: pods attached and detached in turns, and a whole node's pods.

    Our own agent serves our plugin; the reference plugins need none. IPv4. The
    plugins take turns, so that whatever else the machine does befalls all of them.
    """
    rounds = options.pick(AT_ONCE, 50, 100)
    passes = options.pick(1, 4, 5)
    most = options.pick(AT_ONCE, MOST_PODS, MOST_PODS)
    turns: dict[tuple[str, int], list[Pair]] = {}
    wholes: dict[str, list[Pair]] = {}
    with contextlib.ExitStack() as stack:
        test = stack.enter_context(bed())
        node = stack.enter_context(test.node())
        agent = stack.enter_context(agents.running(AgentCommand.ours(), test, node))
        await_subnet(node, agent)
        names = [f"{node.namespace}-{number}" for number in range(most)]
        stack.callback(netns.delete, names)
        netns.add(names)
        pods = [netns.NETNS_DIR / name for name in names]
        program = build(node.place)

        def runtime(chain: Chain) -> Runtime:
            return Runtime(program, chain, pods, agent if chain.needs_agent else None)

        def inside(work: Callable[[], Pair]) -> Pair:
            return netns.inside(node.namespace, work)

        runtimes = {
            chain.name: runtime(chain)
            for chain in chains(node.place, node.place / "state" / "cni.sock")
        }
        for each in runtimes.values():
            inside(functools.partial(each.in_turns, AT_ONCE, 1))  # files into the cache
        for _ in range(passes):
            for name, each in runtimes.items():
                for workers in (1, AT_ONCE):
                    pair = inside(functools.partial(each.in_turns, rounds, workers))
                    turns.setdefault((name, workers), []).append(pair)
                if name != FLOOR:
                    pair = inside(functools.partial(each.all_at_once, AT_ONCE))
                    wholes.setdefault(name, []).append(pair)
    each_row = {key: _joined(pairs) for key, pairs in turns.items()}
    all_row = {name: _joined(pairs) for name, pairs in wholes.items()}
    flannel = FLANNEL if FLANNEL in runtimes else STAND_IN
    rows = tuple(
        (*_row(name, workers, pair), *_ratios(pair, each_row[FLOOR, workers], 1),
         *_ratios(pair, each_row.get((flannel, workers))))
        for (name, workers), pair in each_row.items()
    )  # fmt: skip
    records = [_record(name, workers, pair) for (name, workers), pair in each_row.items()]
    records += [{**_record(name, AT_ONCE, pair), "pods": most} for name, pair in all_row.items()]
    yield Table(_EACH, rows, tuple(records))
    yield Table(
        _ALL,
        tuple(
            (*_whole(name, most, pair, passes), *_ratios(pair, all_row.get(flannel)))
            for name, pair in all_row.items()
        ),
    )


def _joined(pairs: list[Pair]) -> Pair:
    return {command: Calls.joined([pair[command] for pair in pairs]) for command in pairs[0]}


def _row(name: str, workers: int, pair: Pair) -> tuple[str, ...]:
    shown = ((calls.series.tail(1000), f"{1000 * calls.cpu_s:.1f}") for calls in pair.values())
    return (name, str(workers), *(text for both in shown for text in both))


def _ratios(pair: Pair, other: Pair | None, digits: int = 2) -> tuple[str, ...]:
    """Return the medians of ADD and DEL as parts of another's, where there is one."""
    if other is None:
        return "-", "-"
    return tuple(
        ratio(calls.series.median, other[command].series.median, digits)
        for command, calls in pair.items()
    )


def _whole(name: str, pods: int, pair: Pair, passes: int) -> tuple[str, ...]:
    """Return a row of the second table; the seconds are the mean of all passes."""
    shown = ((f"{calls.wall_s / passes:.2f}", calls.series.tail(1000)) for calls in pair.values())
    return (name, str(pods), *(text for both in shown for text in both))


def _record(name: str, workers: int, pair: Pair) -> dict[str, Any]:
    found: dict[str, Any] = {"plugin": name, "at_once": workers}
    for command, calls in pair.items():
        verb = command.lower()
        found[f"{verb}_s"] = calls.each_s
        found[f"{verb}_wall_s"] = calls.wall_s
        found[f"{verb}_cpu_s"] = calls.cpu_s
    return found
