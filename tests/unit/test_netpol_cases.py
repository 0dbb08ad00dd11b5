"""The conformance cases without a kernel: as stated, by the reference, the engine and its table."""

import pytest

from overlay.model.netpol import Flow
from overlay.policy.network.compile import CompileOptions
from overlay.policy.network.decide import Decider
from tests.netpol.casebook import Moment, cases, flow_of, imagined
from tests.netpol.conformance import world_of
from tests.netpol.crossing import arrives, compiled, tables
from tests.netpol.reference import is_allowed
from tests.netpol.statements import Probe, Truth, drawn, parse, truth

_PLACES = imagined()
_CASES = cases()


def _flows(moment: Moment, expected: Truth) -> dict[Probe, Flow]:
    return {probe: flow_of(probe, moment, _PLACES) for probe in expected}


@pytest.mark.parametrize("family", sorted({case.family for case in _CASES}))
def test_what_a_case_states_is_what_the_api_and_the_engine_say(family: str) -> None:
    for case in (each for each in _CASES if each.family == family):
        for number, moment in enumerate(case.moments):
            world = world_of(moment, _PLACES)
            decider = Decider(world)
            expected = moment.expected()
            flows = _flows(moment, expected)
            said = {probe: is_allowed(world, flow) for probe, flow in flows.items()}
            assert said == expected, f"{case}, moment {number}, the reference:\n{drawn(said)}"
            said = {probe: decider.decide(flow).allowed for probe, flow in flows.items()}
            assert said == expected, f"{case}, moment {number}, the engine:\n{drawn(said)}"


@pytest.mark.parametrize("family", sorted({case.family for case in _CASES}))
def test_the_table_says_so_of_sctp_which_few_kernels_have(family: str) -> None:
    for case in (each for each in _CASES if each.family == family):
        for moment in case.moments:
            world = world_of(moment, _PLACES)
            by_node = tables(compiled(world, CompileOptions()))
            for probe, is_open in moment.expected().items():
                if probe.protocol == "sctp":
                    flow = flow_of(probe, moment, _PLACES)
                    assert arrives(world, by_node, flow) is is_open, f"{case}: {probe}"


def test_there_are_as_many_cases_as_we_say_and_no_two_have_one_name() -> None:
    assert len({str(case) for case in _CASES}) == len(_CASES) >= 230


def test_a_case_has_a_table_that_a_person_can_read() -> None:
    case = next(c for c in _CASES if c.name == "deny all, then one may come (ingress)")
    assert drawn(case.moments[0].expected()) == "\n".join(
        (
            "     x/a x/b x/c y/a y/b y/c z/a z/b z/c",
            "x/a    .   X   X   .   .   .   .   .   .",
            "x/b    .   .   X   .   .   .   .   .   .",
            "x/c    X   X   .   .   .   .   .   .   .",
            *(f"{pod}    X   X   X   .   .   .   .   .   ." for pod in _others()),
        )
    )


def test_statements_that_are_none_are_refused() -> None:
    for line in ("x/a x/b open", "x/a -> x/b ajar", "x/a -> x/b open on tcp/82", ""):
        with pytest.raises(ValueError, match="no "):
            parse(line)


def test_a_later_statement_stands_over_an_earlier_one_and_pods_over_nobody_else() -> None:
    lines = [parse(line) for line in ("* -> x/a closed", "y/* -> x/a open on udp/80 over v6")]
    answers = truth(lines, ["y/b", "x/a", "n1"], ["x/a"])
    is_open = {str(probe) for probe, answer in answers.items() if answer}
    assert "y/b -> x/a udp/80 over v6" in is_open
    assert "y/b -> x/a udp/80 over v4" not in is_open
    assert sum(text.startswith("x/a") for text in is_open) == 12
    assert sum(text.startswith("n1") for text in is_open) == 12


def _others() -> list[str]:
    return [f"{namespace}/{pod}" for namespace in "yz" for pod in "abc"]
