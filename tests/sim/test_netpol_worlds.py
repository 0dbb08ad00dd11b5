"""Three that know nothing of one another agree on every connection of random worlds.

The reference (from the API's text), what the engine decides, and what its
table's text does to a packet, node by node.
"""

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from overlay.model.netpol import Flow, World
from overlay.policy.network.compile import CompileOptions, PolicyCompiler
from overlay.policy.network.decide import Decider
from tests.netpol import reference_cluster
from tests.netpol.commands import changed
from tests.netpol.crossing import arrives, compiled, tables
from tests.netpol.packets import parse_table
from tests.netpol.reference import is_allowed
from tests.netpol.worlds import NODES, flows, worlds
from tests.netpol.worlds_cluster import tiered_worlds

_PLAIN = CompileOptions()
_TIERED = CompileOptions(admin_tier=True)
_SETTINGS = settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(_SETTINGS, max_examples=1500)
@given(st.data())
def test_the_table_and_the_answer_are_what_the_api_says(data: st.DataObject) -> None:
    world = data.draw(worlds(), "world")
    asked = data.draw(st.lists(flows(world), min_size=10, max_size=10), "flows")
    by_node = tables(compiled(world, _PLAIN))
    decider = Decider(world)
    for flow in asked:
        said = is_allowed(world, flow)
        assert decider.decide(flow).allowed is said, f"decide: {flow}, the API says {said}"
        assert arrives(world, by_node, flow) is said, f"table: {flow}, the API says {said}"


@settings(_SETTINGS, max_examples=800)
@given(st.data())
def test_the_admin_tier_stands_over_the_others_as_the_api_says(data: st.DataObject) -> None:
    world = data.draw(tiered_worlds(), "world")
    asked = data.draw(st.lists(flows(world), min_size=10, max_size=10), "flows")
    by_node = tables(compiled(world, _TIERED))
    decider = Decider(world, _TIERED)
    for flow in asked:
        said = reference_cluster.is_allowed(world, flow)
        assert decider.decide(flow).allowed is said, f"decide: {flow}, the API says {said}"
        assert arrives(world, by_node, flow) is said, f"table: {flow}, the API says {said}"
    assert Decider(world).decide(asked[0]).allowed is is_allowed(world, asked[0])  # it is off


@settings(_SETTINGS, max_examples=300)
@given(st.lists(worlds() | tiered_worlds(), min_size=2, max_size=4), st.sampled_from(NODES))
def test_a_change_leaves_the_table_that_a_whole_one_would_be(
    history: list[World], node: str
) -> None:
    compiler = PolicyCompiler(node, _TIERED)
    before = compiler.update(history[0])
    in_kernel = parse_table(str(before))
    for world in history[1:]:
        after = compiler.update(world)
        delta = after.delta(before)
        whole = parse_table(str(after))
        if delta is None:
            in_kernel = whole
        else:
            note(delta)
            in_kernel = changed(in_kernel, delta)
        assert in_kernel == whole
        assert parse_table(str(PolicyCompiler(node, _TIERED).update(world))) == whole
        before = after


@settings(_SETTINGS, max_examples=150)
@given(st.data())
def test_ports_open_between_two_are_those_that_single_questions_find(data: st.DataObject) -> None:
    world = data.draw(worlds(), "world")
    flow = data.draw(flows(world), "flow")
    decider = Decider(world)
    spans = decider.reach(flow.source, flow.destination)
    for port in (1, 79, 80, 81, 82, 443, 8080, 8081, 65535):
        asked = Flow(flow.source, flow.destination, flow.protocol, port)
        number = flow.protocol.value
        is_open = any(p == number and low <= port <= high for p, low, high in spans)
        assert is_open is is_allowed(world, asked), asked
