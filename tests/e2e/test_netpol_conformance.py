"""Every conformance case by real connections, in a lab of three nodes with nine pods."""

import secrets
from collections.abc import Iterator

import pytest

from tests.netpol.casebook import cases
from tests.netpol.conformance import Outcome, ThroughEngine, run
from tests.netpol.site import Site, site


@pytest.fixture(scope="module")
def nine_pods() -> Iterator[Site]:
    with site(f"netpol-{secrets.token_hex(3)}") as made:
        yield made


@pytest.mark.timeout(900)
def test_connections_come_about_where_the_cases_state_it(nine_pods: Site) -> None:
    outcomes = run(nine_pods, ThroughEngine(nine_pods), cases(), _quietly)
    wrong = [f"{outcome.case}: {outcome.wrong}" for outcome in outcomes if not outcome.passed]
    assert not wrong, "\n".join(wrong)


def _quietly(_: Outcome) -> None:
    pass
