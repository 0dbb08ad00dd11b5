"""The simulation finds each planted bug, and within how many seeds."""

from itertools import islice

import pytest

from tests.sim.bugs import BUGS
from tests.sim.runs import outcomes
from tests.sim.test_scenarios import FINDS

# About three times the seeds that it took in November 2026, but for what needs many.
WITHIN = {
    "blind-renewal": 150,
    "clean-up-by-event": 20,
    "relist-without-compare": 40,
    "delete-before-set": 60,
    "retried-claim": 60,
    "wall-clock": 60,
    "believed-history": 60,
    "lost-event": 10,
    "no-fence": 30,
    "stubborn-holder": 10,
    "foreign-objects": 10,
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", sorted(WITHIN))
def test_planted_bug_is_found(bug: str) -> None:
    tried = islice(outcomes(0, bug=bug), WITHIN[bug])
    assert any(outcome.violations for outcome in tried), f"{bug}: not in {WITHIN[bug]} seeds"


def test_every_planted_bug_is_tried() -> None:
    assert set(BUGS) == set(WITHIN) | set(FINDS)
