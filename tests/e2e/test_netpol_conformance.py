"""Every conformance case by real connections, in a lab of three nodes with nine pods."""

import secrets
from collections.abc import Iterator

import pytest

from tests.netpol.casebook import cases
from tests.netpol.conformance import Outcome, ThroughEngine, run
from tests.netpol.site import Site, site
from tests.netpol.through_agents import ThroughAgents, is_for_agents


@pytest.fixture(scope="module")
def nine_pods() -> Iterator[Site]:
    with site(f"netpol-{secrets.token_hex(3)}") as made:
        yield made


@pytest.mark.timeout(300)
def test_agents_put_in_force_what_an_operator_applies(nine_pods: Site) -> None:
    """Before the engine's run, which stops the agents; `--through agents` runs all that can be."""
    chosen = [case for case in cases() if case.family == "actions" and is_for_agents(case)][:8]
    outcomes = run(nine_pods, ThroughAgents(nine_pods), chosen, _quietly)
    assert len(outcomes) == 8
    wrong = [f"{outcome.case}: {outcome.wrong}" for outcome in outcomes if not outcome.passed]
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(600)  # ten minutes are the deadline of all cases together
def test_connections_come_about_where_the_cases_state_it(nine_pods: Site) -> None:
    outcomes = run(nine_pods, ThroughEngine(nine_pods), cases(), _quietly)
    wrong = [f"{outcome.case}: {outcome.wrong}" for outcome in outcomes if not outcome.passed]
    assert not wrong, "\n".join(wrong)


def _quietly(_: Outcome) -> None:
    pass
