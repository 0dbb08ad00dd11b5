"""CNI plugins executed as a runtime does it: ADD and DEL, one by one, ten at a time, 110 pods."""

import contextlib
import functools
import os
import queue
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from bench import agents
from bench.bed import bed
from bench.chains import FLANNEL, FLOOR, Chain, chains
from bench.options import AgentCommand, Options
from bench.ready import await_subnet
from bench.series import Series, ratio, series
from bench.table import Table
from overlay.lab import netns
from overlay.model.errors import OverlayError

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


class PluginError(OverlayError):
    """A plugin refused what it was asked: the text is its own."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Seconds of each call, of all together, and of processor time for one."""

    each_s: tuple[float, ...]
    wall_s: float
    cpu_s: float

    @property
    def series(self) -> Series:
        """Return the seconds of each call."""
        return series(self.each_s)


Pair: TypeAlias = tuple[Calls, Calls]  # ADDs and DELs


def run(options: Options) -> Iterator[Table]:
    """Return two tables: pods attached and detached in turns, and a whole node's pods.

    Our own agent serves our plugin; the reference plugins need none. IPv4.
    """
    rounds = options.pick(AT_ONCE, 200, 500)
    most = options.pick(AT_ONCE, MOST_PODS, MOST_PODS)
    turns: dict[tuple[str, int], Pair] = {}
    wholes: dict[str, Pair] = {}
    with contextlib.ExitStack() as stack:
        test = stack.enter_context(bed())
        node = stack.enter_context(test.node())
        agent = stack.enter_context(agents.running(AgentCommand.ours(), test, node))
        await_subnet(node, agent)
        names = [f"{node.namespace}-{number}" for number in range(most)]
        stack.callback(netns.delete, names)
        netns.add(names)

        def inside(work: Callable[[], Pair]) -> Pair:
            return netns.inside(node.namespace, work)

        for chain in chains(node.place, node.place / "state" / "cni.sock"):
            served = agent if chain.needs_agent else None
            runtime = Runtime(chain, names, served)
            inside(functools.partial(runtime.in_turns, AT_ONCE, 1))  # files into the cache
            for workers in (1, AT_ONCE):
                work = functools.partial(runtime.in_turns, rounds, workers)
                turns[chain.name, workers] = inside(work)
            if chain.name != FLOOR:
                wholes[chain.name] = inside(runtime.all_at_once)
    rows = tuple(
        (*_row(name, workers, pair), *_ratios(pair, turns[FLOOR, workers], 1),
         *_ratios(pair, turns.get((FLANNEL, workers))))
        for (name, workers), pair in turns.items()
    )  # fmt: skip
    records = [_record(name, workers, pair) for (name, workers), pair in turns.items()]
    records += [{**_record(name, AT_ONCE, pair), "pods": most} for name, pair in wholes.items()]
    yield Table(_EACH, rows, tuple(records))
    yield Table(
        _ALL,
        tuple(
            (*_whole(name, pair), *_ratios(pair, wholes.get(FLANNEL)))
            for name, pair in wholes.items()
        ),
    )


class Runtime:
    """Attaches and detaches pods by one chain, as a runtime would, in the thread's namespace."""

    def __init__(self, chain: Chain, pods: Sequence[str], agent: agents.Running | None) -> None:
        self._chain = chain
        self._pods = pods
        self._agent = agent

    def in_turns(self, rounds: int, workers: int) -> Pair:
        """Return ``rounds`` ADDs and as many DELs, ``workers`` at a time, each pod by itself.

        The agent's processor time is split in halves: they run side by side.
        """
        free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for pod in self._pods[:AT_ONCE]:
            free.put(pod)

        def attach_and_detach(number: int) -> tuple[tuple[float, float], tuple[float, float]]:
            pod = free.get()
            pair = self._execute("ADD", number, pod), self._execute("DEL", number, pod)
            free.put(pod)
            return pair

        before, started = self._agent_cpu_s(), time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            pairs = list(pool.map(attach_and_detach, range(rounds)))
        wall_s = time.perf_counter() - started
        half_s = (self._agent_cpu_s() - before) / 2
        added, removed = zip(*pairs, strict=True)
        return _calls(added, wall_s, half_s), _calls(removed, wall_s, half_s)

    def all_at_once(self) -> Pair:
        """Attach every pod, ten at a time, and then detach them all."""
        found = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for command in ("ADD", "DEL"):
                before, started = self._agent_cpu_s(), time.perf_counter()
                count = range(len(self._pods))
                calls = list(pool.map(self._execute, [command] * len(count), count, self._pods))
                wall_s = time.perf_counter() - started
                found.append(_calls(calls, wall_s, self._agent_cpu_s() - before))
        return found[0], found[1]

    def _execute(self, command: str, number: int, pod: str) -> tuple[float, float]:
        """Return the seconds from exec to the end, and the processor's; with the plugin's children.

        Raises PluginError.
        """
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"bench{number:059d}",
            "CNI_NETNS": str(netns.NETNS_DIR / pod),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod",
            "CNI_PATH": self._chain.path,
            "PATH": os.environ["PATH"],
        }
        started = time.perf_counter()
        process = subprocess.Popen(
            self._chain.words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None  # noqa: S101 - PIPE is given
        assert process.stdout is not None  # noqa: S101 - likewise
        with process.stdin, process.stdout:
            with contextlib.suppress(BrokenPipeError):  # /bin/true does not read
                os.write(process.stdin.fileno(), self._chain.config)
            process.stdin.close()
            output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise PluginError(f"{self._chain.name}, {command}: {output.decode(errors='replace')}")
        return elapsed, used.ru_utime + used.ru_stime

    def _agent_cpu_s(self) -> float:
        return self._agent.usage.cpu_s if self._agent is not None else 0.0


def _calls(timed: Sequence[tuple[float, float]], wall_s: float, agent_s: float) -> Calls:
    cpu_s = (sum(used for _, used in timed) + agent_s) / len(timed)
    return Calls(tuple(elapsed for elapsed, _ in timed), wall_s, cpu_s)


def _row(name: str, workers: int, pair: Pair) -> tuple[str, ...]:
    return (name, str(workers), *(text for calls in pair for text in _shown(calls)))


def _ratios(pair: Pair, other: Pair | None, digits: int = 2) -> tuple[str, ...]:
    """Return the medians of ADD and DEL as parts of another's, where there is one."""
    if other is None:
        return "-", "-"
    return tuple(
        ratio(calls.series.median, least.series.median, digits)
        for calls, least in zip(pair, other, strict=True)
    )


def _shown(calls: Calls) -> tuple[str, str]:
    return calls.series.tail(1000), f"{1000 * calls.cpu_s:.1f}"


def _whole(name: str, pair: Pair) -> tuple[str, ...]:
    add, delete = pair
    count = str(len(add.each_s))
    shown = (f"{calls.wall_s:.2f}" for calls in pair)
    tails = (calls.series.tail(1000) for calls in (add, delete))
    return (name, count, *(text for both in zip(shown, tails, strict=True) for text in both))


def _record(name: str, workers: int, pair: Pair) -> dict[str, Any]:
    found: dict[str, Any] = {"plugin": name, "at_once": workers}
    for verb, calls in zip(("add", "del"), pair, strict=True):
        found[f"{verb}_s"] = calls.each_s
        found[f"{verb}_wall_s"] = calls.wall_s
        found[f"{verb}_cpu_s"] = calls.cpu_s
    return found
