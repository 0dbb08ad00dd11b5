"""The kernel agrees with the reference, on a sample of random worlds: real TCP and UDP."""

import random
import subprocess
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from overlay.lab import netns
from overlay.model.netpol import Flow, Protocol, World
from overlay.policy.network.compile import CompileOptions
from overlay.policy.network.decide import Decider
from overlay.policy.network.midway import guarded
from tests.netpol import reference_cluster
from tests.netpol.bed import Bed, bed
from tests.netpol.crossing import arrives, compiled, interesting, tables
from tests.netpol.prober import Heard
from tests.netpol.reference import is_allowed
from tests.netpol.worlds import PORTS, addresses, worlds
from tests.netpol.worlds_cluster import tiered_worlds

_FLOWS = 500  # of each world
_PLAIN, _TIERED = CompileOptions(), CompileOptions(admin_tier=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Bed]:
    with bed() as made:
        yield made


# What fails is not made smaller: that would take many times as long, and the
# same world is found by the simulation's tests.
@settings(
    max_examples=25,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(world=worlds(), seed=st.integers(0, 2**32 - 1))
def test_connections_come_about_where_the_api_says(nodes: Bed, world: World, seed: int) -> None:
    _compare(nodes, world, seed, _PLAIN, is_allowed)


@settings(
    max_examples=8,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(world=tiered_worlds(), seed=st.integers(0, 2**32 - 1))
def test_connections_come_about_where_the_admin_tier_says(
    nodes: Bed, world: World, seed: int
) -> None:
    _compare(nodes, world, seed, _TIERED, reference_cluster.is_allowed)


def _compare(
    nodes: Bed,
    world: World,
    seed: int,
    options: CompileOptions,
    reference: Callable[[World, Flow], bool],
) -> None:
    flows = _sample(world, random.Random(seed))
    expected = [reference(world, flow) for flow in flows]
    decider = Decider(world, options)
    rulesets = compiled(world, options)
    by_node = tables(rulesets)
    for flow, said in zip(flows, expected, strict=True):
        assert decider.decide(flow).allowed is said, flow
        assert arrives(world, by_node, flow) is said, flow
    for node, ruleset in rulesets.items():
        _apply(nodes.nodes[node], guarded(ruleset).transaction)
    heard = nodes.prober.ask(
        [
            nodes.question(flow, should_answer=said)
            for flow, said in zip(flows, expected, strict=True)
        ]
    )
    wrong = [
        (flow, answer)
        for flow, said, answer in zip(flows, expected, heard, strict=True)
        if (answer is Heard.ANSWER) is not said
    ]
    assert not wrong


def _sample(world: World, chance: random.Random) -> list[Flow]:
    """Return connections between all sorts of ends, to ports that are listened at."""
    known = addresses(world)
    flows = interesting(
        world,
        [
            Flow(source, target, protocol, chance.choice((80, 81, *PORTS)))
            for source in known
            for target in known
            if source.version == target.version
            for protocol in (Protocol.TCP, Protocol.UDP)
        ],
    )
    return chance.sample(flows, min(_FLOWS, len(flows)))


def _apply(namespace: str, transaction: str) -> None:
    subprocess.run(
        [*netns.command_prefix(namespace), "nft", "-f", "-"],
        input=transaction,
        text=True,
        check=True,
    )
