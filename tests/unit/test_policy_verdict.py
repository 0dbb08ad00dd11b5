"""What a ruleset does to a packet: sure where it can be read, and told where it cannot."""

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.policy.listing import Listing, merged, parse_listing
from overlay.policy.verdict import Packet, verdicts

PACKET = Packet(
    ip_address("10.244.1.2"), ip_address("10.244.2.2"), "tcp", 40000, 80, "opod1", "overlay.1"
)


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def listing(*rules: list[Any], policy: str = "accept", hook: str = "forward") -> Listing:
    """Return a table with a base chain of ``rules``, a chain ``other`` that drops, and a set."""
    place = {"family": "inet", "table": "t"}
    items: list[Any] = [
        {"metainfo": {"version": "1.0.6"}},
        {"chain": {**place, "name": "base", "hook": hook, "prio": 0, "policy": policy}},
        {"chain": {**place, "name": "other"}},
        {"rule": {**place, "chain": "other", "handle": 99, "expr": [{"drop": None}]}},
        {"chain": {**place, "name": "empty"}},
        {"set": {**place, "name": "pods", "elem": [{"prefix": {"addr": "10.244.0.0", "len": 16}}]}},
        {"set": {**place, "name": "nodes", "elem": ["192.0.2.1"]}},
        {"map": {**place, "name": "verdicts", "elem": [["opod*", {"drop": None}]]}},
    ]
    items += [
        {"rule": {**place, "chain": "base", "handle": number, "expr": expressions}}
        for number, expressions in enumerate(rules, 1)
    ]
    return parse_listing(json.dumps({"nftables": items}))


def outcome(found: Listing, packet: Packet = PACKET, hook: str = "forward") -> str:
    """Return the verdict of the base chain: outcome, handle of the rule, what was not read."""
    (verdict,) = verdicts(found, hook, packet)
    rule = f" by {verdict.rule.handle}" if verdict.rule is not None else " by policy"
    unread = f", {len(verdict.unread)} unread" if verdict.unread else ""
    return f"{verdict.outcome}{rule}{unread}"


DROP, ACCEPT = {"drop": None}, {"accept": None}
UNKNOWN = {"xt": {"type": "match", "name": "recent"}}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param([], "accept by policy", id="nothing"),
        pytest.param([[DROP]], "drop by 1", id="all"),
        pytest.param([[{"counter": {"packets": 1}}, DROP]], "drop by 1", id="counted"),
        pytest.param([[match(meta("iifname"), "opod*"), DROP]], "drop by 1", id="prefix"),
        pytest.param([[match(meta("iifname"), "eth*"), DROP]], "accept by policy", id="other"),
        pytest.param([[match(meta("iifname"), "opod*", "!="), DROP]], "accept by policy", id="not"),
        pytest.param([[match(payload("ip", "daddr"), "@pods"), DROP]], "drop by 1", id="set"),
        pytest.param(
            [[match(payload("ip", "daddr"), "@nodes"), DROP]], "accept by policy", id="not in set"
        ),
        pytest.param(
            [[match(payload("ip", "daddr"), "@gone"), DROP]], "accept by policy, 1 unread",
            id="a set that is not listed",
        ),
        pytest.param([[match(payload("ip6", "daddr"), "::1"), DROP]], "accept by policy",
                     id="the other family"),
        pytest.param([[match(payload("tcp", "dport"), 80), DROP]], "drop by 1", id="port"),
        pytest.param([[match(payload("udp", "dport"), 80), DROP]], "accept by policy", id="udp"),
        pytest.param(
            [[match(payload("tcp", "dport"), {"range": [1, 1023]}), DROP]], "drop by 1", id="range"
        ),
        pytest.param(
            [[match(payload("tcp", "dport"), {"set": [22, 443]}), DROP]], "accept by policy",
            id="an anonymous set",
        ),
        pytest.param(
            [[match(meta("l4proto"), {"set": ["tcp", "udp"]}), DROP]], "drop by 1", id="protocol"
        ),
        pytest.param([[match({"ct": {"key": "state"}}, {"set": ["established"]}), ACCEPT], [DROP]],
                     "drop by 2", id="a first packet"),
        pytest.param([[{"jump": {"target": "other"}}]], "drop by 99", id="jump"),
        pytest.param([[{"jump": {"target": "empty"}}], [DROP]], "drop by 2", id="jump and back"),
        pytest.param([[{"goto": {"target": "empty"}}], [DROP]], "accept by policy",
                     id="goto does not come back"),
        pytest.param([[{"return": None}], [DROP]], "accept by policy", id="return"),
        pytest.param([[UNKNOWN, DROP]], "accept by policy, 1 unread", id="not read"),
        pytest.param([[UNKNOWN, DROP], [DROP]], "drop by 2, 1 unread", id="not read, then sure"),
        pytest.param(
            [[{"xt": {"type": "match", "name": "comment"}}, DROP]], "drop by 1",
            id="a comment of iptables' matches",
        ),
        pytest.param([[{"limit": {"rate": 1}}, DROP]], "accept by policy, 1 unread", id="a rate"),
        pytest.param([[{"xt": None}, DROP]], "accept by policy, 1 unread", id="older nft"),
        pytest.param([[{"jump": {"target": "gone"}}]], "accept by policy, 1 unread", id="nowhere"),
        pytest.param([[{"vmap": {"key": "x"}}]], "accept by policy, 1 unread", id="a map"),
        pytest.param([["odd"], [{}], [DROP]], "drop by 3", id="what is no expression"),
    ],
)  # fmt: skip
def test_verdict(rules: list[list[Any]], expected: str) -> None:
    assert outcome(listing(*rules)) == expected


ECHO = match(payload("icmp", "type"), "echo-request")
PORTS = {"concat": [payload("ip", "daddr"), payload("tcp", "dport")]}
SERVICE = {"concat": [{"prefix": {"addr": "10.244.2.0", "len": 24}}, {"range": [80, 90]}]}


def vmap(key: Any, *pairs: Any) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": [list(pair) for pair in pairs]}}}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param([[match(payload("th", "dport"), 80), DROP]], "drop by 1", id="transport"),
        pytest.param([[ECHO, DROP]], "accept by policy", id="of another transport"),
        pytest.param([[match(payload("udp", "dport"), 80, "!="), DROP]], "accept by policy",
                     id="not, of another protocol"),
        pytest.param([[match(meta("protocol"), "ip"), DROP]], "drop by 1", id="IPv4"),
        pytest.param([[match(payload("ether", "type"), "ip6"), DROP]], "accept by policy",
                     id="not IPv6"),
        pytest.param([[match(PORTS, {"set": [SERVICE]}), DROP]], "drop by 1", id="concatenated"),
        pytest.param([[match(PORTS, {"set": [{"concat": ["10.244.2.2", 81]}]}), DROP]],
                     "accept by policy", id="concatenated, another"),
        pytest.param([[match(PORTS, {"set": [{"concat": ["10.244.2.2"]}]}), DROP]],
                     "accept by policy, 1 unread", id="concatenated, too short"),
        pytest.param([[vmap(meta("iifname"), ("opod1", DROP))]], "drop by 1", id="a verdict map"),
        pytest.param([[vmap(meta("iifname"), ("eth*", DROP))], [DROP]], "drop by 2",
                     id="not in a verdict map"),
        pytest.param([[vmap(meta("iifname"), ("opod1", {"jump": {"target": "other"}}))]],
                     "drop by 99", id="a verdict map that jumps"),
        pytest.param([[vmap(meta("mark"), (1, DROP))]], "accept by policy, 1 unread",
                     id="a verdict map of what is not known"),
        pytest.param([[UNKNOWN, vmap(meta("iifname"), ("opod1", DROP))]],
                     "accept by policy, 1 unread", id="perhaps by a verdict map"),
        pytest.param([[{"vmap": {"key": meta("iifname"), "data": "@verdicts"}}]], "drop by 1",
                     id="a named map"),
        pytest.param([[UNKNOWN, {"jump": {"target": "empty"}}], [DROP]], "drop by 2",
                     id="perhaps into nothing"),
        pytest.param([[UNKNOWN, {"jump": {"target": "other"}}]], "accept by policy, 1 unread",
                     id="perhaps into a chain that drops"),
        pytest.param([[{"limit": {"rate": 1}}, {"log": None}], [DROP]], "drop by 2",
                     id="a rate that decides nothing"),
        pytest.param([[{"xt": {"type": "target", "name": "REJECT"}}]], "reject by 1",
                     id="a target of iptables"),
        pytest.param([[{"xt": {"type": "target", "name": "LOG"}}], [DROP]], "drop by 2",
                     id="a target that goes on"),
        pytest.param([[{"xt": {"type": "target", "name": "DOCKERS"}}], [DROP]],
                     "drop by 2, 1 unread", id="a target that nobody knows"),
    ],
)  # fmt: skip
def test_rarer_expressions(rules: list[list[Any]], expected: str) -> None:
    assert outcome(listing(*rules)) == expected


def test_flags_of_a_first_packet_are_known() -> None:
    flags = {"&": [payload("tcp", "flags"), ["fin", "syn", "rst", "ack"]]}
    midway = listing([match(flags, "syn", "!="), DROP])
    assert outcome(midway) == "accept by policy"
    assert outcome(listing([match(flags, "syn"), DROP])) == "drop by 1"
    assert outcome(midway, replace(PACKET, protocol="udp")) == "accept by policy"
    assert outcome(midway, replace(PACKET, is_answer=True)) == "accept by policy, 1 unread"


def test_echo_is_told_from_its_answer() -> None:
    echo = replace(PACKET, protocol="icmp")
    assert outcome(listing([ECHO, DROP]), echo) == "drop by 1"
    assert outcome(listing([ECHO, DROP]), replace(echo, is_answer=True)) == "accept by policy"
    code = match(payload("icmp", "code"), 0)
    assert outcome(listing([code, DROP]), echo) == "accept by policy, 1 unread"


@pytest.mark.parametrize(
    ("rules", "against"),
    [
        pytest.param([[UNKNOWN, DROP]], 1, id="passes, and might be dropped"),
        pytest.param([[UNKNOWN, ACCEPT]], None, id="passes this way or that"),
        pytest.param([[UNKNOWN, DROP], [DROP]], None, id="dropped this way or that"),
        pytest.param([[UNKNOWN, DROP], [UNKNOWN, ACCEPT], [DROP]], 2, id="dropped, or saved"),
        pytest.param([[UNKNOWN, {"return": None}], [DROP]], 1, id="perhaps it returns before"),
        pytest.param([[UNKNOWN, {"jump": {"target": "other"}}]], 1, id="perhaps into a drop"),
    ],
)
def test_doubt_counts_against_where_it_would_change_the_end(
    rules: list[list[Any]], against: int | None
) -> None:
    (found,) = verdicts(listing(*rules), "forward", PACKET)
    assert (found.against.handle if found.against is not None else None) == against


@pytest.mark.parametrize(
    ("field", "left"),
    [
        ("iif", meta("iifname")),
        ("oif", meta("oif")),
        ("source", payload("ip", "saddr")),
        ("destination", payload("ip", "daddr")),
    ],
)
def test_what_only_stands_for_something_is_not_judged(field: str, left: Any) -> None:
    packet = replace(PACKET, unknown=frozenset({field}))
    assert outcome(listing([match(left, "x"), DROP]), packet) == "accept by policy, 1 unread"


def test_policy_decides_at_the_end() -> None:
    assert outcome(listing(policy="drop")) == "drop by policy"


def test_answer_is_established() -> None:
    rules = listing([match({"ct": {"key": "state"}}, {"set": ["established"]}), ACCEPT], [DROP])
    assert outcome(rules, replace(PACKET, is_answer=True)) == "accept by 1"


def test_source_must_be_routed_to_its_link() -> None:
    fib = {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}
    rules = listing([match(fib, right=False), DROP])
    assert outcome(rules, replace(PACKET, source_device="opod1")) == "accept by policy"
    assert outcome(rules, replace(PACKET, source_device="opod2")) == "drop by 1"
    assert outcome(rules, replace(PACKET, source_device=None)) == "drop by 1"


def test_tunnel_packet_is_told_by_its_vni() -> None:
    raw = {"payload": {"base": "th", "offset": 96, "len": 24}}
    rules = listing([match(raw, 1), DROP])
    assert outcome(rules, replace(PACKET, vni=1)) == "drop by 1"
    assert outcome(rules, replace(PACKET, vni=7)) == "accept by policy"
    assert outcome(rules) == "accept by policy, 1 unread"


def test_chains_run_by_priority_until_one_stops() -> None:
    def chain(name: str, priority: int, policy: str) -> Any:
        place = {"family": "ip", "table": name, "name": "c", "hook": "forward"}
        return {"chain": {**place, "prio": priority, "policy": policy}}

    items = [chain("late", 10, "accept"), chain("first", -10, "accept"), chain("mid", 0, "drop")]
    found = verdicts(parse_listing(json.dumps({"nftables": items})), "forward", PACKET)
    assert [verdict.chain.place[1] for verdict in found] == ["first", "mid"]


def test_our_own_table_is_taken_with_its_elements() -> None:
    terse = listing([match(payload("ip", "daddr"), "@pods"), DROP])
    terse = Listing(terse.chains, {})
    assert outcome(terse) == "accept by policy, 1 unread"
    assert outcome(merged(terse, listing([match(payload("ip", "daddr"), "@pods"), DROP]))) == (
        "drop by 1"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["match", "left", "right", "op", "meta", "key", "payload", "set", "range",
                         "prefix", "addr", "len", "jump", "target", "elem", "val", "fib", "xt",
                         "vmap", "data", "concat", "limit"]),
        inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.lists(JSON, max_size=4))
def test_odd_expressions_never_raise(expressions: list[Any]) -> None:
    found = listing(expressions, [{"match": {"left": meta("iifname"), "op": "==", "right": e}}
                                  for e in expressions])  # fmt: skip
    for verdict in verdicts(found, "forward", PACKET):
        assert all(isinstance(str(rule), str) for rule in verdict.unread)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nftables": {}}', "\x00"])
def test_what_is_no_listing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_listing(text)
