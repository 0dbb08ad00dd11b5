"""What becomes of a flow, and who says so."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.model.cluster_policy import Action, ClusterNetworkPolicy, ClusterRule, NodePeer, Tier
from overlay.model.netpol import (
    EVERYTHING,
    BlockPeer,
    Flow,
    NamedPort,
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    PortMatch,
    Protocol,
    Requirement,
    Rule,
    Selector,
    World,
)
from overlay.policy.network.classes import Direction
from overlay.policy.network.compile import CompileOptions, compile_policies
from overlay.policy.network.decide import Decider, Decision, Judgement, decide
from tests.unit.policy_worlds import worlds

WEB, LB, DB, NODE, OUTSIDE = "10.244.1.1", "10.244.2.2", "10.244.1.3", "192.0.2.1", "198.51.100.7"


def app(name: str) -> Selector:
    return Selector((Requirement("app", Operator.IN, frozenset({name})),))


def pod(name: str, address: str, node: str = "n1", *ports: NamedPort) -> Pod:
    return Pod("shop", name, frozenset({ip_address(address)}), {"app": name}, node, ports)


HTTP = PortMatch(port="http")
INGRESS = NetworkPolicy(
    "shop", "in", app("web"), ingress=(Rule(), Rule((PodPeer(app("lb")),), (HTTP,)))
)
ONLY_LB = replace(INGRESS, ingress=INGRESS.ingress[1:] if INGRESS.ingress else None)
EGRESS = NetworkPolicy(
    "shop",
    "out",
    app("lb"),
    egress=(
        Rule((PodPeer(app("web")),), (HTTP, PortMatch(Protocol.UDP, 53, 99))),
        Rule((BlockPeer(ip_network("198.51.100.0/24")),), (PortMatch(port=443),)),
    ),
)


def world(*policies: NetworkPolicy, cluster: tuple[ClusterNetworkPolicy, ...] = ()) -> World:
    pods = [pod("web", WEB, "n1", NamedPort("http", 8080)), pod("lb", LB, "n2"), pod("db", DB)]
    return World(
        {each.key: each for each in pods},
        {},
        {each.key: each for each in policies},
        {"n1": frozenset({ip_address(NODE)})},
        {"n1": {"zone": "a"}},
        {each.name: each for each in cluster},
    )


def flow(source: str, target: str, port: int = 8080, protocol: Protocol = Protocol.TCP) -> Flow:
    return Flow(ip_address(source), ip_address(target), protocol, port)


def test_each_end_names_the_rules_that_allow_or_the_policies_that_isolate() -> None:
    start = world(ONLY_LB, EGRESS)
    assert decide(start, flow(LB, WEB)) == Decision(
        True,
        Judgement(Direction.EGRESS, ("shop", "lb"), True, ("shop/out egress[0]",)),
        Judgement(Direction.INGRESS, ("shop", "web"), True, ("shop/in ingress[0]",)),
    )
    assert decide(start, flow(LB, WEB, 80)) == Decision(
        False,
        Judgement(Direction.EGRESS, ("shop", "lb"), False, (), ("shop/out",)),
        Judgement(Direction.INGRESS, ("shop", "web"), False, (), ("shop/in",)),
    )
    assert decide(start, flow(LB, OUTSIDE, 443)) == Decision(
        True, Judgement(Direction.EGRESS, ("shop", "lb"), True, ("shop/out egress[1]",)), None
    )
    assert decide(start, flow(DB, OUTSIDE)) == Decision(
        True, Judgement(Direction.EGRESS, ("shop", "db"), True), None
    )


def test_all_rules_that_allow_are_named() -> None:
    ingress = decide(world(INGRESS), flow(LB, WEB)).ingress
    assert ingress is not None
    assert ingress.rules == ("shop/in ingress[0]", "shop/in ingress[1]")


def test_a_pod_reaches_itself_and_a_node_its_own_pods() -> None:
    deny = NetworkPolicy("shop", "deny", EVERYTHING, ingress=(), egress=())
    start = world(deny)
    assert decide(start, flow(WEB, WEB)).because == "a pod reaches itself"
    assert decide(start, flow(NODE, WEB)).because == "node n1 reaches its own pods"
    assert not decide(start, flow(NODE, LB)).allowed, "it runs on another"
    assert not decide(start, flow(WEB, NODE)).allowed, "a node is a destination like others"


@pytest.mark.parametrize(
    ("source", "target", "open_ports"),
    [
        (LB, WEB, "tcp 8080"),
        (DB, WEB, ""),
        (LB, OUTSIDE, "tcp 443"),
        (WEB, DB, "tcp 0-65535, udp 0-65535, sctp 0-65535"),
    ],
)
def test_reach_is_what_both_ends_leave_open(source: str, target: str, open_ports: str) -> None:
    decider = Decider(world(ONLY_LB, EGRESS))
    found = decider.reach(ip_address(source), ip_address(target))
    spelled = [
        f"{Protocol(number).name.lower()} {first}" + (f"-{last}" if last != first else "")
        for number, first, last in found
    ]
    assert ", ".join(spelled) == open_ports


def test_audit_allows_and_says_who_would_not() -> None:
    options = CompileOptions(audited=frozenset({"shop"}))
    decision = decide(world(ONLY_LB), flow(DB, WEB), options)
    assert decision.ingress == Judgement(
        Direction.INGRESS, ("shop", "web"), True, (), ("shop/in",), audited=True
    )
    allowed = decide(world(ONLY_LB), flow(LB, WEB), options).ingress
    assert allowed is not None
    assert not allowed.audited


@pytest.mark.parametrize("action", list(Action))
def test_nodes_whose_labels_nobody_knows_fail_closed(action: Action) -> None:
    subject = PodPeer(EVERYTHING, EVERYTHING)
    rules = (
        ClusterRule(action, (NodePeer(Selector((Requirement("a", Operator.EXISTS),))),)),
        ClusterRule(Action.DENY, (NodePeer(EVERYTHING),)),
    )
    guard = ClusterNetworkPolicy("guard", Tier.ADMIN, 1, subject, egress=rules)
    start = replace(world(), cluster_policies={"guard": guard}, node_labels={})
    options = CompileOptions(admin_tier=True)
    assert not decide(start, flow(WEB, NODE), options).allowed
    known = replace(start, node_labels={"n1": {"a": "b"}})
    assert decide(known, flow(WEB, NODE), options).allowed is (action is not Action.DENY)
    if action is Action.DENY:
        only = replace(start, cluster_policies={"guard": replace(guard, egress=rules[:1])})
        assert not decide(only, flow(WEB, NODE), options).allowed
        assert "192.0.2.1" in str(compile_policies(only, "n1", options))


def test_audit_of_a_namespace_overrules_no_administrator() -> None:
    everyone = PodPeer(EVERYTHING, EVERYTHING)
    rule = (ClusterRule(Action.DENY, (everyone,)),)
    tiers = [ClusterNetworkPolicy(t.value.lower(), t, 1, everyone, rule) for t in Tier]
    options = CompileOptions(frozenset({"shop"}), admin_tier=True)
    for cluster, is_admin in zip(tiers, (True, False), strict=True):
        start = replace(world(), cluster_policies={cluster.name: cluster})
        decision = decide(start, flow(DB, WEB), options)
        assert decision.allowed is not is_admin
        assert decision.ingress is not None
        assert decision.ingress.audited is not is_admin
        table = str(compile_policies(start, "n1", options))
        assert (" drop" in table.replace("policy drop", "")) is is_admin


def test_the_admin_tier_is_asked_first_and_the_baseline_last() -> None:
    everyone = PodPeer(EVERYTHING, EVERYTHING)
    zone = Selector((Requirement("zone", Operator.IN, frozenset({"a"})),))
    guard = ClusterNetworkPolicy(
        "guard",
        Tier.ADMIN,
        1,
        everyone,
        (
            ClusterRule(Action.ACCEPT, (everyone,), (PortMatch(port=1),), "probe"),
            ClusterRule(Action.PASS, (everyone,), (PortMatch(port=2, last=3),)),
            ClusterRule(Action.DENY, (everyone,), (PortMatch(port=1, last=9),)),
        ),
        (ClusterRule(Action.DENY, (NodePeer(zone),), None, "nodes"),),
    )
    base = ClusterNetworkPolicy(
        "base", Tier.BASELINE, 1, everyone, (ClusterRule(Action.DENY, (everyone,)),)
    )
    start = world(ONLY_LB, cluster=(base, guard))
    decider = Decider(start, CompileOptions(admin_tier=True))

    def said(target: str, port: int) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
        found = decider.decide(flow(LB, target, port)).ingress
        assert found is not None
        return found.allowed, found.rules, found.policies

    assert said(WEB, 1) == (True, ('guard ingress[0] "probe"',), ())
    assert said(WEB, 2) == (False, (), ("shop/in",))
    assert said(WEB, 4) == (False, ("guard ingress[2]",), ("guard",))
    assert said(WEB, 8080) == (True, ("shop/in ingress[0]",), ())
    assert said(DB, 2) == (False, ("base ingress[0]",), ("base",))
    to_node = decider.decide(flow(WEB, NODE))
    assert to_node.egress is not None
    assert to_node.egress.rules == ('guard egress[0] "nodes"',)
    assert decide(start, flow(LB, WEB, 4)).ingress == Judgement(
        Direction.INGRESS, ("shop", "web"), False, (), ("shop/in",)
    ), "the tier is off"


_ADDRESSES = st.sampled_from(
    [f"10.244.0.{n}" for n in range(1, 9)] + ["fd00:244::1", "192.0.2.1", "198.51.100.1"]
)


@settings(deadline=None, max_examples=60)
@given(worlds(), _ADDRESSES, _ADDRESSES, st.booleans())
def test_reach_and_decide_agree(world: World, source: str, target: str, admin: bool) -> None:
    decider = Decider(world, CompileOptions(admin_tier=admin))
    reach = decider.reach(ip_address(source), ip_address(target))
    for protocol in Protocol:
        for port in (0, 80, 81, 85, 90, 101, 443, 5432, 8080, 65535):
            is_open = any(n == protocol.value and a <= port <= b for n, a, b in reach)
            assert decider.decide(flow(source, target, port, protocol)).allowed == is_open
