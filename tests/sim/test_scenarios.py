"""Chosen histories break no invariant, and find the bugs that chance finds too rarely."""

import pytest

from tests.sim.bugs import BUGS
from tests.sim.scenarios import SCENARIOS
from tests.sim.world import Outcome, World

SEEDS = range(5)
FINDS = {
    "revision-only": "revision_given_out_twice",
    "believed-revision": "revision_overtaken",
    "believed-history": "revision_overtaken",
    "late-fence": "cut_off_past_the_end",
    "restless-watch": "watches_stand_still",
    "unread-config": "config_of_another_history",
}


def play(name: str, world: World) -> Outcome:
    SCENARIOS[name](world)
    return world.end()


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenario_breaks_no_invariant(name: str) -> None:
    for seed in SEEDS:
        outcome = play(name, World(seed))
        assert not outcome.violations, f"seed {seed}: {outcome.violations[0]}"


@pytest.mark.parametrize("bug", sorted(FINDS))
def test_scenario_finds_the_planted_bug(bug: str) -> None:
    assert any(play(FINDS[bug], BUGS[bug](seed, False)).violations for seed in SEEDS)
