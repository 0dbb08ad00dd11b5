"""The conformance run: every case, in a lab of three nodes, by real connections."""

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

from overlay.lab import netns, processes
from overlay.model.netpol import World
from overlay.policy.network.compile import PolicyCompiler
from overlay.policy.network.midway import guarded
from overlay.policy.network.parse import parse_policy
from overlay.policy.network.table import PolicyRuleset
from tests.netpol.casebook import Case, Moment, Places
from tests.netpol.site import Site
from tests.netpol.statements import NODES

_MOST_WORDS: Final = 5  # of what is wrong in one moment


class Enforcer(Protocol):
    """Whoever puts a moment's policies in force on all nodes before it returns."""

    def enforce(self, moment: Moment) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case."""

    case: Case
    connections: int
    wrong: tuple[str, ...]
    took_s: float

    @property
    def passed(self) -> bool:
        """Return whether every connection was as the case states."""
        return not self.wrong


@dataclass(slots=True)
class ThroughEngine:
    """The engine's tables, put straight into the nodes: whole at first, then as changes.

    The agents are stopped: they would put their own table back. Traffic flows on.
    """

    site: Site
    _compilers: dict[str, PolicyCompiler] = field(default_factory=dict)
    _applied: dict[str, PolicyRuleset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        processes.stop(self.site.lab.agent(node) for node in NODES)

    def enforce(self, moment: Moment) -> None:
        """Compile and apply, each node by itself."""
        world = world_of(moment, self.site.places)
        with ThreadPoolExecutor(max_workers=len(NODES)) as pool:
            list(pool.map(lambda node: self._enforce(node, world), NODES))

    def _enforce(self, node: str, world: World) -> None:
        compiler = self._compilers.setdefault(node, PolicyCompiler(node))
        ruleset = guarded(compiler.update(world))
        before = self._applied.get(node)
        delta = ruleset.delta(before) if before is not None else None
        text = ruleset.transaction if delta is None else delta
        if text:
            _nft(self.site.namespaces[node], text)
        self._applied[node] = ruleset


def world_of(moment: Moment, places: Places) -> World:
    """Return a moment as the engine takes it, its policies read from their objects."""
    policies = [parse_policy(document) for document in moment.objects(places)]
    return World(
        pods=moment.pods(places),
        namespaces=moment.namespaces(),
        policies={policy.key: policy for policy in policies},
        nodes=places.nodes,
    )


def run(
    site: Site, enforcer: Enforcer, cases: Iterable[Case], tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Return what became of each case, in order; each is told as it ends."""
    outcomes = []
    for case in cases:
        began = time.monotonic()
        connections, wrong = 0, list[str]()
        for number, moment in enumerate(case.moments):
            enforcer.enforce(moment)
            asked, found = site.wrong(moment)
            connections += asked
            wrong += [f"moment {number}: {words}" for words in found[:_MOST_WORDS]]
            if len(found) > _MOST_WORDS:
                wrong.append(f"moment {number}: and {len(found) - _MOST_WORDS} more")
        outcomes.append(Outcome(case, connections, tuple(wrong), time.monotonic() - began))
        tell(outcomes[-1])
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of a table by family, in Markdown."""
    yield "| family | cases | as stated | connections | seconds |"
    yield "|---|---|---|---|---|"
    families = sorted({outcome.case.family for outcome in outcomes})
    for family in families:
        yield _row(family, [each for each in outcomes if each.case.family == family])
    yield _row("all", outcomes)


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    passed = sum(outcome.passed for outcome in outcomes)
    connections = sum(outcome.connections for outcome in outcomes)
    took_s = sum(outcome.took_s for outcome in outcomes)
    return f"| {name} | {len(outcomes)} | {passed} | {connections} | {took_s:.0f} |"


def _nft(namespace: str, text: str) -> None:
    done = subprocess.run(
        [*netns.command_prefix(namespace), "nft", "-f", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        msg = f"nft in {namespace}: {done.stderr[:2000]}\n{text[:4000]}"
        raise AssertionError(msg)
