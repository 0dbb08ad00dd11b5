"""The table of policies as nft reads it, digests replaced by letters."""

import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from textwrap import dedent

import pytest

from overlay.model.address import MacAddress
from overlay.model.cluster_policy import Action, ClusterNetworkPolicy, ClusterRule, Tier
from overlay.model.netpol import (
    EVERYTHING,
    BlockPeer,
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
from overlay.policy.network.compile import (
    CompileOptions,
    PolicyCompiler,
    compile_policies,
    denials_by_policy,
)
from overlay.policy.network.links import PodLink, with_links
from overlay.policy.network.midway import guarded
from overlay.policy.network.render import LogOptions
from overlay.policy.network.table import PolicyRuleset
from overlay.policy.ports import link_local


def app(name: str) -> Selector:
    return Selector((Requirement("app", Operator.IN, frozenset({name})),))


def pod(
    number: int, name: str, namespace: str = "shop", node: str = "n1", **more: NamedPort
) -> Pod:
    address = frozenset({ip_address(f"10.244.0.{number}"), ip_address(f"fd00::{number}")})
    ports = tuple(more.values())
    return Pod(namespace, f"{name}-{number}", address, {"app": name}, node, ports)


def world(*pods: Pod, policies: tuple[NetworkPolicy, ...] = ()) -> World:
    return World({each.key: each for each in pods}, {}, {each.key: each for each in policies})


def lettered(text: str) -> str:
    """Return ``text`` with its digests as letters, in the order in which they come."""
    letters: dict[str, str] = {}
    return re.sub(
        r"[0-9a-f]{16}",
        lambda match: letters.setdefault(match[0], chr(ord("A") + len(letters))),
        text,
    )


def body(ruleset: PolicyRuleset) -> str:
    """Return the sets with elements, the chains without hooks and the maps."""
    parts = [
        f"{each.name} {{ {', '.join(sorted(each.elements))} }}"
        for _, each in sorted(ruleset.sets.items())
        if each.elements
    ]
    parts += [
        f"{name}:\n" + "".join(f"  {line}\n" for line in lines).rstrip("\n")
        for name, lines in sorted(ruleset.chains.items())
    ]
    parts += [
        f"{name} {{ {address} : {chain} }}"
        for name, verdicts in sorted(ruleset.maps.items())
        for address, chain in sorted(verdicts.elements.items())
    ]
    return lettered("\n".join(parts))


HTTP = PortMatch(port=80)
WEB = NetworkPolicy("shop", "web", app("web"), ingress=(Rule((PodPeer(app("lb")),), (HTTP,)),))


def expected(text: str) -> str:
    return dedent(text).strip("\n")


def test_one_policy_one_chain_one_set_of_peers() -> None:
    ruleset = compile_policies(
        world(pod(1, "web"), pod(2, "web"), pod(3, "lb", node="n2"), policies=(WEB,)), "n1"
    )
    assert body(ruleset) == expected("""
        ov_a4_A { 10.244.0.3 }
        ov_a6_A { fd00::3 }
        ov_p_B { tcp . 80 }
        ov_self4 { 10.244.0.1 . 10.244.0.1, 10.244.0.2 . 10.244.0.2 }
        ov_self6 { fd00::1 . fd00::1, fd00::2 . fd00::2 }
        ov_c_C:
          ip saddr @ov_a4_A meta l4proto . th dport @ov_p_B return
          ip6 saddr @ov_a6_A meta l4proto . th dport @ov_p_B return
          counter name "ov_C" drop
        ov_to4 { 10.244.0.1 : ov_c_C }
        ov_to4 { 10.244.0.2 : ov_c_C }
        ov_to6 { fd00::1 : ov_c_C }
        ov_to6 { fd00::2 : ov_c_C }
    """)


ALWAYS_V6 = (
    "icmpv6 type { packet-too-big, mld-listener-query, mld-listener-report, mld-listener-done, "
    "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, "
    "mld2-listener-report } accept"
)


def test_hooks_ask_the_sender_then_the_receiver_and_never_the_node() -> None:
    assert compile_policies(World(), "n1").base == {
        "ov_forward": (
            "type filter hook forward priority filter - 9; policy accept;",
            "ct state established,related accept",
            ALWAYS_V6,
            "icmp type destination-unreachable icmp code frag-needed accept",
            "ip saddr . ip daddr @ov_self4 accept",
            "ip6 saddr . ip6 daddr @ov_self6 accept",
            "ip saddr vmap @ov_from4",
            "ip6 saddr vmap @ov_from6",
            "ip daddr vmap @ov_to4",
            "ip6 daddr vmap @ov_to6",
        ),
        "ov_input": (
            "type filter hook input priority filter - 9; policy accept;",
            "ct state established,related accept",
            ALWAYS_V6,
            "icmp type destination-unreachable icmp code frag-needed accept",
            "ip saddr vmap @ov_from4",
            "ip6 saddr vmap @ov_from6",
        ),
        "ov_output": (
            "type filter hook output priority filter - 9; policy accept;",
            "ct state established,related accept",
            ALWAYS_V6,
            "icmp type destination-unreachable icmp code frag-needed accept",
            "fib saddr type local accept",
            "ip daddr vmap @ov_to4",
            "ip6 daddr vmap @ov_to6",
        ),
    }


@pytest.mark.parametrize(
    ("rules", "lines"),
    [
        pytest.param((), 'counter name "ov_A" drop', id="default deny"),
        pytest.param((Rule(),), "return", id="a rule for all"),
        pytest.param(
            (Rule(None, (HTTP, PortMatch(Protocol.UDP, 53))),),
            'meta l4proto . th dport @ov_p_A return\ncounter name "ov_B" drop',
            id="ports for everybody",
        ),
        pytest.param(
            (Rule((BlockPeer(ip_network("10.0.0.0/8")),)),),
            'ip saddr @ov_b4_A return\ncounter name "ov_B" drop',
            id="a block on every port",
        ),
        pytest.param(
            (Rule((BlockPeer(ip_network("fd00::/8")),), (PortMatch(port=1, last=9),)),),
            'ip6 saddr . meta l4proto . th dport @ov_c6_A return\ncounter name "ov_B" drop',
            id="a block with ports",
        ),
        pytest.param(
            (Rule((PodPeer(),)),),
            'ip saddr @ov_a4_A return\nip6 saddr @ov_a6_A return\ncounter name "ov_B" drop',
            id="pods on every port",
        ),
        pytest.param(
            (Rule((PodPeer(),), (PortMatch(Protocol.SCTP),)),),
            "ip saddr @ov_a4_A meta l4proto . th dport @ov_p_B return\n"
            "ip6 saddr @ov_a6_A meta l4proto . th dport @ov_p_B return\n"
            'counter name "ov_C" drop',
            id="pods on every port of a protocol",
        ),
    ],
)
def test_what_a_rule_becomes(rules: tuple[Rule, ...], lines: str) -> None:
    policy = NetworkPolicy("shop", "p", ingress=rules)
    ruleset = compile_policies(world(pod(1, "web"), policies=(policy,)), "n1")
    (chain,) = ruleset.chains.values()
    assert lettered("\n".join(chain)) == lines


def test_blocks_that_overlap_become_ranges_that_do_not() -> None:
    rules = (
        Rule((BlockPeer(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),)),), (HTTP,)),
        Rule((BlockPeer(ip_network("10.1.2.0/24")),), (HTTP, PortMatch(port=443))),
        Rule((BlockPeer(ip_network("10.2.0.0/16")),)),
    )
    policy = NetworkPolicy("shop", "p", egress=rules)
    ruleset = compile_policies(world(pod(1, "web"), policies=(policy,)), "n1")
    assert body(ruleset) == expected("""
        ov_b4_A { 10.2.0.0/16 }
        ov_c4_B { 10.0.0.0/16 . tcp . 80, 10.1.2.0/24 . tcp . 443, 10.1.2.0/24 . tcp . 80, 10.3.0.0-10.255.255.255 . tcp . 80 }
        ov_self4 { 10.244.0.1 . 10.244.0.1 }
        ov_self6 { fd00::1 . fd00::1 }
        ov_c_C:
          ip daddr @ov_b4_A return
          ip daddr . meta l4proto . th dport @ov_c4_B return
          counter name "ov_C" drop
        ov_from4 { 10.244.0.1 : ov_c_C }
        ov_from6 { fd00::1 : ov_c_C }
    """)  # noqa: E501 - as nft reads it


def test_names_of_ports_are_the_targets_own() -> None:
    to_http = (Rule((PodPeer(app("web")),), (PortMatch(port="http"),)),)
    ingress = NetworkPolicy(
        "shop", "in", app("web"), ingress=(Rule(None, (PortMatch(port="http"),)),)
    )
    egress = NetworkPolicy("shop", "out", app("lb"), egress=to_http)
    ruleset = compile_policies(
        world(
            pod(1, "web", http=NamedPort("http", 8080)),
            pod(2, "web", http=NamedPort("http", 8080), other=NamedPort("other", 9)),
            pod(3, "web", http=NamedPort("http", 80)),
            pod(4, "web", http=NamedPort("http", 80, Protocol.UDP)),
            pod(5, "lb"),
            policies=(ingress, egress),
        ),
        "n1",
    )
    found = body(ruleset)
    assert "{ 10.244.0.1 . tcp . 8080, 10.244.0.2 . tcp . 8080, 10.244.0.3 . tcp . 80 }" in found
    to = ruleset.maps["ov_to4"].elements
    assert to["10.244.0.1"] == to["10.244.0.2"], "they resolve alike"
    assert len({to[f"10.244.0.{n}"] for n in (2, 3, 4)}) == 3


def test_chains_are_for_classes_and_not_for_pods() -> None:
    pods = [pod(n, "web") for n in range(1, 101)]
    ruleset = compile_policies(world(*pods, policies=(WEB,)), "n1")
    assert len(ruleset.chains) == 1
    assert len(ruleset.maps["ov_to4"].elements) == 100


@pytest.mark.parametrize("count", [1, 10, 300])
def test_the_way_of_a_packet_does_not_grow_with_policies(count: int) -> None:
    def rules(n: int) -> tuple[Rule, ...]:
        return (
            Rule(
                (PodPeer(app(f"a{n}")),),
                (PortMatch(port=n + 1), PortMatch(port=n + 9000, last=n + 9009)),
            ),
            Rule((PodPeer(app(f"b{n}")),)),
            Rule((BlockPeer(ip_network(f"10.{n % 250}.0.0/24")),), (HTTP,)),
            Rule((BlockPeer(ip_network(f"fd00:{n:x}::/64")),), (HTTP,)),
            Rule((BlockPeer(ip_network(f"10.{n % 250}.9.0/24")),)),
            Rule((BlockPeer(ip_network(f"fd01:{n:x}::/64")),)),
            Rule(None, (PortMatch(Protocol.UDP, n + 1),)),
        )

    policies = tuple(
        NetworkPolicy("shop", f"p{n}", ingress=rules(n), egress=rules(n)) for n in range(count)
    )
    ruleset = compile_policies(
        world(pod(1, "a0"), *(pod(n, f"b{n}") for n in range(2, 9)), policies=policies), "n1"
    )
    # Per family: four broad selectors, then pods, pods with ports, with ranges, blocks, blocks
    # with ports; and everybody's ports and the last that drops.
    assert [len(lines) for lines in ruleset.chains.values()] == [10 if count == 1 else 20] * 2


def test_what_a_broad_selector_means_is_one_set_for_all_who_name_it() -> None:
    live = Selector((Requirement("stage", Operator.IN, frozenset({"live"})),))
    dns = Rule((PodPeer(EVERYTHING, live),), (PortMatch(Protocol.UDP, 53), PortMatch(port=53)))
    named = Rule((PodPeer(EVERYTHING, live),), (PortMatch(port="http"),))
    policies = [
        NetworkPolicy(
            f"n{n}", "p", egress=(dns, Rule((PodPeer(),), (PortMatch(port=n + 1),))), ingress=()
        )
        for n in range(50)
    ]
    policies += [NetworkPolicy(f"n{n}", "names", app("web"), egress=(named,)) for n in range(50)]
    pods = [pod(n, "web", f"n{n}", http=NamedPort("http", 80)) for n in range(50)]
    start = replace(
        world(*pods, policies=tuple(policies)),
        namespaces={f"n{n}": {"stage": "live"} for n in range(50)},
    )
    ruleset = compile_policies(start, "n1")
    assert len(ruleset.chains) == 100
    # Of each family: every pod with its named port and that of DNS for two protocols, the
    # namespaces' own, and each pod to itself.
    elements = [len(each.elements) for each in ruleset.sets.values() if "p_" not in each.name]
    assert sum(elements) == 2 * (50 * 3 + 50 + 50)


def test_pods_of_the_host_finished_ones_and_other_nodes_have_no_chain() -> None:
    policy = NetworkPolicy("shop", "p", ingress=(Rule((PodPeer(),)),))
    others = [
        replace(pod(2, "web"), is_on_host=True),
        replace(pod(3, "web"), is_finished=True),
        pod(4, "web", node="n2"),
        replace(pod(5, "web"), addresses=frozenset()),
    ]
    ruleset = compile_policies(world(pod(1, "web"), *others, policies=(policy,)), "n1")
    assert list(ruleset.maps["ov_to4"].elements) == ["10.244.0.1"]
    (peers,) = [each for name, each in ruleset.sets.items() if name.startswith("ov_a4_")]
    assert peers.elements == {"10.244.0.1", "10.244.0.4"}


def test_no_text_of_objects_reaches_nft() -> None:
    odd = '"; drop\n} # \\ \ud800'
    labels = Selector((Requirement(odd, Operator.IN, frozenset({odd})),))
    policy = NetworkPolicy(
        odd, odd, EVERYTHING, (Rule((PodPeer(labels, labels),), (PortMatch(port=odd),)),), ()
    )
    subject = PodPeer(EVERYTHING, EVERYTHING)
    rule = ClusterRule(Action.DENY, (subject,), None, odd)
    cluster = ClusterNetworkPolicy(odd, Tier.ADMIN, 1, subject, (rule,), (rule,))
    scoped = frozenset({ip_address(f"fe80::1%{odd}"), ip_address("10.0.0.1")})
    each = Pod(odd, odd, scoped, {odd: odd}, odd, (NamedPort(odd, 80),))
    found = compile_policies(
        World(
            {each.key: each},
            {odd: {odd: odd}},
            {policy.key: policy},
            cluster_policies={odd: cluster},
        ),
        odd,
        CompileOptions(admin_tier=True, log=LogOptions(3)),
        frozenset({ip_address(f"fe80::2%{odd}")}),
    )
    assert len(found.chains) == 7
    words = re.sub(
        r'(log prefix "overlay-policy ([0-9a-f]+|unknown) "|counter name "ov_\w+")', "", str(found)
    )
    assert not set(words) & set('"#\\\ud800')
    assert found.denials["unknown"].policies == ()


def test_audit_and_log() -> None:
    options = CompileOptions(frozenset({"shop"}), log=LogOptions(9, snaplen=64, rate=2, burst=4))
    ruleset = compile_policies(world(pod(1, "web"), policies=(WEB,)), "n1", options)
    (chain,) = ruleset.chains.values()
    assert lettered("\n".join(chain[-2:])) == (
        'limit rate 2/second burst 4 packets log prefix "overlay-policy A " group 9 snaplen 64\n'
        'counter name "ov_A" return'
    )
    (denial,) = ruleset.denials.values()
    assert (denial.direction, denial.policies, denial.audited) == (
        Direction.INGRESS,
        ("shop/web",),
        True,
    )
    assert denials_by_policy(ruleset) == {"shop/web": (denial,)}


def test_pods_that_nobody_knows_are_shut_whatever_their_address_was() -> None:
    unknown = frozenset({ip_address("10.244.0.1"), ip_address("10.244.0.9")})
    ruleset = compile_policies(world(pod(1, "web"), policies=(WEB,)), "n1", unknown=unknown)
    assert ruleset.maps["ov_from4"].elements == {
        "10.244.0.1": "ov_unknown",
        "10.244.0.9": "ov_unknown",
    }
    assert ruleset.maps["ov_to4"].elements == ruleset.maps["ov_from4"].elements
    assert ruleset.chains["ov_unknown"] == ('counter name "ov_unknown" drop',)


def test_the_admin_tier_comes_first_and_the_baseline_where_nothing_isolates() -> None:
    team = Selector((Requirement("team", Operator.IN, frozenset({"ops"})),))
    everyone = PodPeer(EVERYTHING, EVERYTHING)
    ops, on_80 = (PodPeer(EVERYTHING, team),), (HTTP,)
    guard = ClusterNetworkPolicy(
        "guard",
        Tier.ADMIN,
        5,
        everyone,
        (
            ClusterRule(Action.ACCEPT, ops),
            ClusterRule(Action.PASS, (everyone,), on_80),
            ClusterRule(Action.DENY, (PodPeer(app("bad"), EVERYTHING),)),
        ),
    )
    base = ClusterNetworkPolicy(
        "base", Tier.BASELINE, 5, everyone, (ClusterRule(Action.DENY, (everyone,)),)
    )
    start = world(pod(1, "web"), pod(2, "db"), pod(3, "bad", "x", "n2"), policies=(WEB,))
    start = replace(
        start,
        namespaces={"x": {"team": "ops"}},
        cluster_policies={each.name: each for each in (base, guard)},
    )
    assert not compile_policies(start, "n2").chains, "the tier is off"
    ruleset = compile_policies(start, "n1", CompileOptions(admin_tier=True))
    names = {
        direction: lettered(ruleset.maps["ov_to4"].elements[direction])
        for direction in ("10.244.0.1", "10.244.0.2")
    }
    assert set(names.values()) == {"ov_c_A"}
    by_address = ruleset.maps["ov_to4"].elements
    for address, last in (("10.244.0.1", "th dport @ov_p_"), ("10.244.0.2", "goto ov_d_")):
        entry = ruleset.chains[by_address[address]]
        after = entry[-1].removeprefix("goto ")
        assert lettered("\n".join(entry)) == expected("""
            ip saddr @ov_a4_A return
            ip6 saddr @ov_a6_A return
            ip saddr @ov_a4_B meta l4proto . th dport @ov_p_C goto ov_n_D
            ip6 saddr @ov_a6_B meta l4proto . th dport @ov_p_C goto ov_n_D
            ip saddr @ov_a4_E goto ov_d_F
            ip6 saddr @ov_a6_E goto ov_d_F
            goto ov_n_D
        """)
        assert last in ruleset.chains[after][0]
    web_chain = ruleset.chains[by_address["10.244.0.1"].replace("ov_c_", "ov_n_")]
    assert web_chain[-1].endswith("drop"), "what a NetworkPolicy isolates asks no baseline"
    db_chain = ruleset.chains[by_address["10.244.0.2"].replace("ov_c_", "ov_n_")]
    assert lettered(db_chain[0]) == "ip saddr @ov_a4_A goto ov_d_B"
    assert denials_by_policy(ruleset).keys() == {"guard", "base", "shop/web"}


def test_a_label_changes_elements_alone() -> None:
    start = world(pod(1, "web"), pod(3, "lb", node="n2"), pod(4, "x", node="n2"), policies=(WEB,))
    compiler = PolicyCompiler("n1")
    old = compiler.update(start)
    key = ("shop", "x-4")
    pods = {**start.pods, key: replace(start.pods[key], labels={"app": "lb"})}
    new = compiler.update(replace(start, pods=pods))
    delta = new.delta(old)
    assert delta is not None
    assert (
        lettered(delta)
        == expected("""
        add element inet overlay_policy ov_a4_A { 10.244.0.4 }
        add element inet overlay_policy ov_a6_A { fd00::4 }
    """)
        + "\n"
    )
    back = old.delta(new)
    assert back is not None
    assert back == delta.replace("add element", "delete element")


def test_a_pod_that_leaves_its_class_takes_the_chain_along() -> None:
    start = world(pod(1, "web"), policies=(WEB,))
    compiler = PolicyCompiler("n1")
    old = compiler.update(start)
    new = compiler.update(replace(start, policies={}))
    delta = new.delta(old)
    assert delta is not None
    assert (
        lettered(delta)
        == expected("""
        delete element inet overlay_policy ov_self4 { 10.244.0.1 . 10.244.0.1 }
        delete element inet overlay_policy ov_self6 { fd00::1 . fd00::1 }
        delete element inet overlay_policy ov_to4 { 10.244.0.1 }
        delete element inet overlay_policy ov_to6 { fd00::1 }
        flush chain inet overlay_policy ov_c_A
        delete chain inet overlay_policy ov_c_A
        delete set inet overlay_policy ov_a4_B
        delete set inet overlay_policy ov_a6_B
        delete set inet overlay_policy ov_p_C
        delete counter inet overlay_policy ov_A
    """)
        + "\n"
    )


def test_an_edited_policy_keeps_its_counter() -> None:
    start = world(pod(1, "web"), policies=(WEB,))
    compiler = PolicyCompiler("n1")
    old = compiler.update(start)
    edited = replace(WEB, ingress=())
    delta = compiler.update(replace(start, policies={WEB.key: edited})).delta(old)
    assert delta is not None
    assert (
        lettered(delta)
        == expected("""
        flush chain inet overlay_policy ov_c_A
        add rule inet overlay_policy ov_c_A counter name "ov_A" drop
        delete set inet overlay_policy ov_a4_B
        delete set inet overlay_policy ov_a6_B
        delete set inet overlay_policy ov_p_C
    """)
        + "\n"
    )


def test_link_local_addresses_are_judged_by_link_or_by_mac_address() -> None:
    deny = NetworkPolicy("shop", "deny", app("web"), ingress=(), egress=())
    ruleset = compile_policies(world(pod(1, "web"), pod(2, "web"), policies=(deny,)), "n1")
    routed = PodLink("opoda", (ip_address("fd00::1"),))
    bridged = PodLink(
        "opodb", (ip_address("10.244.0.2"),), link_local(MacAddress("02:00:00:00:00:01"))
    )
    found = with_links(ruleset, [routed, bridged, PodLink("opodc", (ip_address("10.244.0.9"),))])
    egress, ingress = (ruleset.maps[name].elements["10.244.0.1"] for name in ("ov_from4", "ov_to4"))
    assert found.maps["ov_links"].elements == {'"opoda"': egress}
    assert found.maps["ov_from6"].elements["fe80::ff:fe00:1"] == egress
    assert found.maps["ov_to6"].elements["fe80::ff:fe00:1"] == ingress
    assert found.base["ov_input"][-1] == "ip6 saddr fe80::/10 iifname vmap @ov_links"


def test_pods_under_audit_lose_nothing_in_the_middle_of_a_connection() -> None:
    policies = (WEB, NetworkPolicy("lab", "deny", ingress=()))
    pods = world(pod(1, "web"), pod(2, "x", "lab"), policies=policies)
    ruleset = guarded(compile_policies(pods, "n1", CompileOptions(frozenset({"lab"}))))
    assert ruleset.sets["ov_shut4"].elements == {"10.244.0.1"}
    lines = ruleset.base["ov_forward"]
    assert lines[1:3] == (
        "ct state established,related ct mark & 0x20000000 == 0x00000000 accept",
        "ct mark & 0x20000000 == 0x20000000 goto ov_d_cut",
    )
    assert lines[3].endswith("ip saddr @ov_shut4 goto ov_d_midway")
    assert ruleset.base["ov_input"][1:3] == lines[1:3]
