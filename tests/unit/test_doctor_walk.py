"""What becomes of a packet in chains of rules of iptables and nftables, without sending it."""

import shlex
from ipaddress import ip_address
from typing import Any

import pytest

from overlay.cli.doctor import walk_iptables, walk_nft
from overlay.cli.doctor.walk import Action, Outcome, Packet, Rule, walk
from overlay.model.address import Family

PACKET = Packet(Family.IPV4, ip_address("192.0.2.2"), ip_address("192.0.2.1"), 8472, iif="eth0")


def iptables(text: str, packet: Packet = PACKET) -> Outcome:
    chains: dict[str, list[str]] = {}
    for line in text.strip().splitlines():
        chains.setdefault(shlex.split(line)[1], []).append(line.strip())
    rules = walk_iptables.rules_for(packet, chains)
    return walk(rules, "INPUT", drops_by_policy=walk_iptables.drops_by_policy(chains, "INPUT"))


@pytest.mark.parametrize(
    ("rules", "is_dropped"),
    [
        pytest.param("-P INPUT ACCEPT", False, id="policy accepts"),
        pytest.param("-P INPUT DROP", True, id="policy drops"),
        pytest.param("-P INPUT DROP\n-A INPUT -j ACCEPT", False, id="accepted before the policy"),
        pytest.param("-A INPUT -s 192.0.2.0/24 -j DROP", True, id="by source"),
        pytest.param("-A INPUT ! -s 192.0.2.0/24 -j DROP", False, id="by another source"),
        pytest.param("-A INPUT -d 192.0.2.1/32 -j REJECT", True, id="by destination"),
        pytest.param("-A INPUT -i eth+ -j DROP", True, id="by a prefix of the interface"),
        pytest.param("-A INPUT -i eth1 -j DROP", False, id="another interface"),
        pytest.param("-A INPUT -o eth0 -j DROP", None, id="an interface that is not known"),
        pytest.param("-A INPUT -p tcp -j DROP", False, id="another protocol"),
        pytest.param("-A INPUT -p udp -m udp --dport 8000:9000 -j DROP", True, id="a port range"),
        pytest.param("-A INPUT -p udp -m udp --dport 1:80 -j DROP", False, id="another range"),
        pytest.param("-A INPUT -p udp -m udp ! --dport 53 -j DROP", True, id="all but a port"),
        pytest.param("-A INPUT -p udp -m udp --sport 53 -j DROP", None, id="a source port"),
        pytest.param(
            "-A INPUT -m conntrack --ctstate INVALID,ESTABLISHED -j DROP", False, id="a state"
        ),
        pytest.param("-A INPUT -m state --state NEW -j DROP", True, id="a new flow"),
        pytest.param("-A INPUT -m limit --limit 5/s -j ACCEPT\n-P INPUT DROP", None, id="limit"),
        pytest.param("-A INPUT -m limit --limit 5/s -j LOG\n-P INPUT DROP", True, id="log"),
        pytest.param("-A INPUT -j DOCKER\n-P INPUT ACCEPT", None, id="a target nobody knows"),
        pytest.param(
            '-A INPUT -m comment --comment "a -j DROP" -j ACCEPT\n-P INPUT DROP',
            False,
            id="text",
        ),
        pytest.param(
            "-A INPUT -j A\n-A INPUT -j DROP\n-N A\n-A A -j RETURN\n-A A -j ACCEPT",
            True,
            id="jump and return",
        ),
        pytest.param(
            "-A INPUT -g A\n-A INPUT -j ACCEPT\n-N A\n-A A -p tcp -j ACCEPT\n-P INPUT DROP",
            True,
            id="goto comes back to the policy",
        ),
        pytest.param(
            "-A INPUT -m limit --limit 1/s -j A\n-N A\n-A A -j DROP\n-P INPUT ACCEPT",
            None,
            id="perhaps into a chain that drops",
        ),
        pytest.param("-A INPUT -j INPUT\n-P INPUT DROP", True, id="a circle ends"),
    ],
)
def test_iptables(rules: str, is_dropped: bool | None) -> None:
    assert iptables(rules).is_dropped is is_dropped


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


DROP: dict[str, Any] = {"drop": None}
SADDR, DPORT, IIF = payload("ip", "saddr"), payload("udp", "dport"), {"meta": {"key": "iifname"}}


@pytest.mark.parametrize(
    ("rule", "is_dropped"),
    [
        pytest.param([DROP], True, id="all"),
        pytest.param([match(DPORT, 8472), DROP], True, id="port"),
        pytest.param([match(DPORT, 53), DROP], False, id="another port"),
        pytest.param([match(DPORT, 53, "!="), DROP], True, id="all but a port"),
        pytest.param([match(DPORT, {"set": [53, 8472]}), DROP], True, id="set"),
        pytest.param([match(DPORT, {"set": [{"range": [1, 80]}]}), DROP], False, id="range"),
        pytest.param(
            [match(SADDR, {"prefix": {"addr": "192.0.2.0", "len": 24}}), DROP], True, id="prefix"
        ),
        pytest.param([match(SADDR, {"range": ["192.0.2.3", "192.0.2.9"]}), DROP], False, id="span"),
        pytest.param([match(SADDR, "192.0.2.2"), DROP], True, id="address"),
        pytest.param([match(SADDR, "@s"), DROP], None, id="a named set"),
        pytest.param([match(payload("ip6", "saddr"), "::1"), DROP], False, id="another family"),
        pytest.param([match(payload("tcp", "dport"), 22), DROP], False, id="another protocol"),
        pytest.param([match(IIF, "eth*"), DROP], True, id="interface"),
        pytest.param([match(IIF, {"set": ["lo", "wg0"]}), DROP], False, id="other interfaces"),
        pytest.param(
            [match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), DROP], True, id="l4proto"
        ),
        pytest.param(
            [match({"ct": {"key": "state"}}, ["established", "related"], "in"), DROP],
            False,
            id="state",
        ),
        pytest.param([{"limit": {"rate": 1, "per": "second"}}, DROP], None, id="limit"),
        pytest.param([{"counter": {}}, {"log": None}, DROP], True, id="counter and log"),
        pytest.param([{"xt": None}, DROP], None, id="what nft cannot tell"),
        pytest.param([match({"fib": {}}, True), DROP], None, id="fib"),
        pytest.param([{"jump": {"target": "c"}}], True, id="jump"),
        pytest.param([match(DPORT, 1), {"jump": {"target": "c"}}], False, id="jump not taken"),
        pytest.param([{"match": "odd"}, DROP], None, id="an odd answer"),
    ],
)
def test_nft(rule: list[dict[str, Any]], is_dropped: bool | None) -> None:
    chains = walk_nft.rules_for(PACKET, {"i": [rule], "c": [[{"reject": None}]]})
    assert walk(chains, "i", drops_by_policy=False).is_dropped is is_dropped


def test_outcome_names_the_rule() -> None:
    assert (
        iptables("-A INPUT -s 192.0.2.0/24 -j DROP").by == "rule `-A INPUT -s 192.0.2.0/24 -j DROP`"
    )
    chains = walk_nft.rules_for(PACKET, {"i": [[match(DPORT, 8472), DROP]]})
    assert walk(chains, "i", drops_by_policy=False).by == "rule `udp dport 8472 drop`"
    assert walk({}, "i", drops_by_policy=True).by == "the policy"


def test_doubt_that_changes_nothing_is_none() -> None:
    rules = {"i": [Rule(None, Action.DROP), Rule(takes=True, action=Action.DROP, text="sure")]}
    assert walk(rules, "i", drops_by_policy=False) == Outcome(is_dropped=True, by="sure")
