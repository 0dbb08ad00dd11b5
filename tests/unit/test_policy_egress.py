"""The ruleset as an operator would read it, in each mode."""

import json
import random
import textwrap
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.model.address import FAMILIES, Family, IPAddress
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.subnet import parse_subnet
from overlay.plan.backend import Tunnel
from overlay.policy.egress import (
    DeviceNameError,
    FirewallPlan,
    Nodes,
    compile_ruleset,
    masquerade_ports,
    with_nodes,
)
from overlay.policy.ruleset import NamedSet, Ruleset, hosts, intervals

TUNNEL = Tunnel(8472, 1, {Family.IPV4: "overlay.1"})


def config(mode: str = "island", v6: bool = False, **egress: object) -> NetworkConfig:
    document: dict[str, object] = {"Network": "10.244.0.0/16", "Egress": {"Mode": mode, **egress}}
    if v6:
        document |= {"EnableIPv6": True, "IPv6Network": "fd00:1::/56"}
    return parse_network_config(json.dumps(document))


def nodes_at(*texts: str) -> Nodes:
    return {family: hosts(map(ip_address, texts), family) for family in FAMILIES}


def plan(mode: str = "island", **egress: object) -> FirewallPlan:
    return FirewallPlan(
        own=parse_subnet("10.244.1.0/24"),
        config=config(mode, False, **egress),
        tunnel=TUNNEL,
        nodes=nodes_at("192.0.2.10", "192.0.2.9"),
        underlay="eth0",
    )


def chain(ruleset: Ruleset, name: str) -> str:
    """Return the rules of one chain, without indentation."""
    _, found, rest = ruleset.chains.partition(f"\tchain {name} {{\n")
    return textwrap.dedent(rest.partition("\t}\n")[0]) if found else ""


def sets(ruleset: Ruleset) -> dict[str, str]:
    return {
        each.name: ", ".join(sorted(map(str, each.elements)))
        for each in ruleset.sets
        if each.elements
    }


def test_sets_hold_peers_networks_and_exceptions() -> None:
    both = replace(
        plan(),
        own=parse_subnet("10.244.1.0/24,fd00:1:0:1::/64"),
        config=config(v6=True, NonMasqueradeCIDRs=["198.51.100.0/24", "2001:db8::/32"]),
        nodes=nodes_at("192.0.2.9", "2001:db8::9"),
    )
    assert sets(compile_ruleset(both)) == {
        "ov_nodes4": "192.0.2.9",
        "ov_nodes6": "2001:db8::9",
        "ov_pods4": "10.244.0.0/16",
        "ov_own4": "10.244.1.0/24",
        "ov_keep4": "198.51.100.0/24",
        "ov_pods6": "fd00:1::/56",
        "ov_own6": "fd00:1:0:1::/64",
        "ov_keep6": "2001:db8::/32",
    }


def test_set_reads_like_nft() -> None:
    assert str(compile_ruleset(plan())).startswith(
        "table inet overlay {\n"
        "\tset ov_nodes4 {\n"
        "\t\ttype ipv4_addr\n"
        "\t\telements = { 192.0.2.9, 192.0.2.10 }\n"
        "\t}\n"
        "\n"
        "\tset ov_nodes6 {\n"
        "\t\ttype ipv6_addr\n"
        "\t}\n"
        "\n"
        "\tset ov_pods4 {\n"
        "\t\ttype ipv4_addr\n"
        "\t\tflags interval\n"
        "\t\telements = { 10.244.0.0/16 }\n"
        "\t}\n"
    )


def test_whole_table_is_replaced_in_one_transaction() -> None:
    ruleset = compile_ruleset(plan())
    assert ruleset.transaction == f"table inet overlay {{}}\ndelete table inet overlay\n{ruleset}"
    assert str(ruleset).endswith("\t}\n}\n")


ISLAND = """\
type nat hook postrouting priority srcnat - 5; policy accept;
oifname "lo" return
oifname "overlay.1" return
oifname "opod*" return
ip saddr @ov_own4 goto ov_masquerade
ip6 saddr @ov_own6 goto ov_masquerade
"""

MASQUERADE = """\
ip daddr @ov_pods4 return
ip daddr @ov_nodes4 return
ip daddr @ov_keep4 return
ip daddr 224.0.0.0/4 return
ip6 daddr @ov_pods6 return
ip6 daddr @ov_nodes6 return
ip6 daddr @ov_keep6 return
ip6 daddr ff00::/8 return
meta l4proto { tcp, udp } masquerade to :8473-65535 fully-random
masquerade fully-random
"""

REJECT = "counter reject with icmpx admin-prohibited"

FORWARD = """\
type filter hook forward priority filter - 10; policy accept;
udp dport 8472 jump ov_guard
"""

INPUT = """\
type filter hook input priority filter - 10; policy accept;
udp dport 8472 goto ov_arrival
"""

ARRIVAL = """\
iifname "eth0" @th,96,24 0x1 ip saddr @ov_nodes4 accept
jump ov_guard
@th,96,24 0x1 goto ov_tunnel
"""

GUARD = f"""\
iifname "opod*" {REJECT} comment "a pod to the tunnel port"
ip saddr 10.244.1.0/24 {REJECT} comment "a pod to the tunnel port"
"""

ISOLATED = """\
iifname "opod-bridge" oifname "opod-bridge" return
iifname "opod*" jump ov_from_pod
ip saddr 10.244.1.0/24 iifname != "opod*" jump ov_from_pod
oifname "opod*" jump ov_to_pod
ip daddr 10.244.1.0/24 oifname != "opod*" jump ov_to_pod
"""

FROM_POD = f"""\
ip daddr 10.244.1.0/24 return
ip daddr 10.244.0.0/16 oifname "overlay.1" return
ip daddr @ov_nodes4 return
ip6 daddr @ov_nodes6 return
{REJECT} comment "a pod to the outside"
"""

TO_POD = f"""\
ip saddr 10.244.1.0/24 iifname "opod*" return
ip saddr 10.244.1.0/24 fib saddr . iif oif exists return
ip saddr 10.244.1.0/24 counter drop comment "a pod address, forged"
ip saddr 10.244.0.0/16 iifname "overlay.1" return
ip saddr @ov_nodes4 return
ip6 saddr @ov_nodes6 return
{REJECT} comment "the outside to a pod"
"""

NO_RANGE = MASQUERADE.replace(
    "meta l4proto { tcp, udp } masquerade to :8473-65535 fully-random\n", ""
)


@pytest.mark.parametrize(
    ("given_plan", "expected"),
    [
        pytest.param(
            plan("island"),
            {
                "ov_postrouting": ISLAND,
                "ov_masquerade": MASQUERADE,
                "ov_forward": FORWARD,
                "ov_input": INPUT,
                "ov_arrival": ARRIVAL,
                "ov_guard": GUARD,
                "ov_from_pod": "",
            },
            id="island",
        ),
        pytest.param(
            plan("island", RandomFully=False),
            {"ov_masquerade": MASQUERADE.replace(" fully-random", "")},
            id="island, ports kept where they can be",
        ),
        pytest.param(
            replace(plan("island"), tunnel=None),
            {
                "ov_postrouting": ISLAND.replace('oifname "overlay.1" return\n', ""),
                "ov_masquerade": NO_RANGE,
                "ov_forward": "",
                "ov_input": "",
                "ov_arrival": "",
                "ov_guard": "",
            },
            id="island without a tunnel",
        ),
        pytest.param(
            plan("isolated"),
            {
                "ov_postrouting": "",
                "ov_forward": FORWARD + ISOLATED,
                "ov_guard": GUARD,
                "ov_from_pod": FROM_POD,
                "ov_to_pod": TO_POD,
            },
            id="isolated",
        ),
        pytest.param(
            replace(plan("isolated"), direct=True),
            {
                "ov_from_pod": FROM_POD.replace(' oifname "overlay.1"', ""),
                "ov_to_pod": TO_POD.replace(' iifname "overlay.1"', ""),
            },
            id="isolated, peers reached directly",
        ),
        pytest.param(
            plan("flat"),
            {"ov_postrouting": "", "ov_masquerade": "", "ov_forward": FORWARD, "ov_guard": GUARD},
            id="flat",
        ),
        pytest.param(
            replace(plan("flat"), pod_devices=("cni0",)),
            {
                "ov_guard": GUARD.replace(
                    "ip saddr",
                    f'iifname "cni0" {REJECT} comment "a pod to the tunnel port"\nip saddr',
                )
            },
            id="pods on a bridge",
        ),
    ],
)
def test_rules_of_a_mode(given_plan: FirewallPlan, expected: dict[str, str]) -> None:
    ruleset = compile_ruleset(given_plan)
    assert {name: chain(ruleset, name) for name in expected} == expected


def test_tunnel_s_packets_are_told_by_port_and_vni() -> None:
    both = Tunnel(4789, 0xABCDEF, {Family.IPV6: "overlay-v6.9", Family.IPV4: "overlay.9"})
    ruleset = compile_ruleset(replace(plan("flat"), tunnel=both))
    assert chain(ruleset, "ov_input").splitlines()[-1] == "udp dport 4789 goto ov_arrival"
    assert chain(ruleset, "ov_arrival") == (
        'iifname "eth0" @th,96,24 0xabcdef ip saddr @ov_nodes4 accept\n'
        'iifname "eth0" @th,96,24 0xabcdef ip6 saddr @ov_nodes6 accept\n'
        "jump ov_guard\n"
        "@th,96,24 0xabcdef goto ov_tunnel\n"
    )
    assert chain(ruleset, "ov_tunnel") == (
        'iifname "overlay.9" counter drop comment "tunnel packets in a tunnel"\n'
        'iifname "overlay-v6.9" counter drop comment "tunnel packets in a tunnel"\n'
        "ip saddr @ov_nodes4 accept\n"
        "ip6 saddr @ov_nodes6 accept\n"
        'counter drop comment "tunnel packets from no peer"\n'
    )


@pytest.mark.parametrize(
    "underlay",
    [
        pytest.param("", id="not known"),
        pytest.param("overlay.1", id="the tunnel"),
        pytest.param("opod-bridge", id="the pods' bridge"),
        pytest.param("cni0", id="another plugin's bridge of pods"),
        pytest.param("bond 0", id="a name that would need quoting"),
        pytest.param("eth*", id="a name that would match others"),
    ],
)
def test_no_way_in_is_short_where_pods_might_take_it(underlay: str) -> None:
    ruleset = compile_ruleset(replace(plan(), underlay=underlay, pod_devices=("cni0",)))
    assert chain(ruleset, "ov_arrival") == "jump ov_guard\n@th,96,24 0x1 goto ov_tunnel\n"


def test_a_chain_stands_before_those_that_jump_to_it() -> None:
    for mode in ("island", "isolated", "flat"):
        text = compile_ruleset(plan(mode)).chains
        for name in (
            "ov_tunnel", "ov_guard", "ov_arrival", "ov_from_pod", "ov_to_pod", "ov_masquerade",
        ):  # fmt: skip
            for verb in ("jump", "goto"):
                use = text.find(f"{verb} {name}\n")
                assert use == -1 or text.index(f"chain {name} {{") < use


@pytest.mark.parametrize("port", [1, 1023, 1024, 4789, 8472, 33000, 40000, 65535])
def test_masquerade_ports_avoid_the_tunnel_s(port: int) -> None:
    first, last = masquerade_ports(port)
    assert 1024 <= first < last <= 65535
    assert not first <= port <= last
    assert last - first >= (65535 - 1024) // 2 - 1


@pytest.mark.parametrize("name", ['x" ; flush ruleset #', "a b", "a\nb", "", "a" * 16, "e*", "ä"])
@pytest.mark.parametrize("where", ["tunnel", "bridge"])
@pytest.mark.parametrize("mode", ["island", "isolated"])
def test_device_name_that_needs_quoting_is_refused(name: str, where: str, mode: str) -> None:
    bad = (
        replace(plan(mode), tunnel=Tunnel(8472, 1, {Family.IPV4: name}))
        if where == "tunnel"
        else replace(plan(mode), pod_devices=(name,))
    )
    with pytest.raises(DeviceNameError) as caught:
        compile_ruleset(bad)
    assert caught.value.device == name


def test_scoped_address_is_left_out_whatever_its_scope_says() -> None:
    hostile = IPv6Address("fe80::1%x } ; flush ruleset")
    assert hosts([hostile], Family.IPV6) == frozenset()
    ruleset = compile_ruleset(replace(plan(), nodes={Family.IPV6: frozenset({hostile})}))
    assert "flush" not in ruleset.transaction, "nor where nobody left it out"


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        (["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"], ["10.0.0.0/8"]),
        (["10.0.0.0/25", "10.0.0.128/25", "fd00::/8"], ["10.0.0.0/24"]),
        (["0.0.0.0/0", "192.0.2.0/24"], ["0.0.0.0/0"]),
        (["fd00::/8"], []),
    ],
)
def test_networks_that_overlap_become_one(networks: list[str], expected: list[str]) -> None:
    merged = intervals(map(ip_network, networks), Family.IPV4)
    assert sorted(map(str, merged)) == expected


def test_peers_that_come_and_go_change_elements_alone() -> None:
    old = compile_ruleset(plan())
    new = compile_ruleset(
        replace(
            plan(),
            nodes=nodes_at("192.0.2.9", "192.0.2.11", "2001:db8::1"),
        )
    )
    assert new.delta(old) == (
        "add element inet overlay ov_nodes4 { 192.0.2.11 }\n"
        "add element inet overlay ov_nodes6 { 2001:db8::1 }\n"
        "delete element inet overlay ov_nodes4 { 192.0.2.10 }\n"
    )
    assert new.delta(new) == ""


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(plan("flat"), id="another mode"),
        pytest.param(replace(plan(), own=parse_subnet("10.244.2.0/24")), id="another subnet"),
        pytest.param(plan(NonMasqueradeCIDRs=["192.0.2.0/24"]), id="an exception more"),
        pytest.param(replace(plan(), tunnel=Tunnel(8472, 2, TUNNEL.devices)), id="another VNI"),
    ],
)
def test_other_config_needs_the_whole_table(other: FirewallPlan) -> None:
    assert compile_ruleset(other).delta(compile_ruleset(plan())) is None


addresses = st.frozensets(st.ip_addresses(v=4).map(IPv4Address), max_size=20)


@given(addresses, addresses)
def test_other_nodes_give_what_compiling_them_gives(
    before: frozenset[IPAddress], after: frozenset[IPAddress]
) -> None:
    known = compile_ruleset(replace(plan(), nodes={Family.IPV4: before}))
    nodes = {Family.IPV4: after}
    assert with_nodes(known, nodes) == compile_ruleset(replace(plan(), nodes=nodes))


@given(addresses, addresses)
def test_delta_leads_from_any_peers_to_any_others(
    before: frozenset[IPAddress], after: frozenset[IPAddress]
) -> None:
    def ruleset(nodes: frozenset[IPAddress]) -> Ruleset:
        return Ruleset((NamedSet("ov_nodes4", Family.IPV4, hosts(nodes, Family.IPV4)),))

    held = {str(address) for address in before}
    for line in (ruleset(after).delta(ruleset(before)) or "").splitlines():
        verb, words = line.split()[0], line[line.index("{") + 1 : line.index("}")]
        listed = {word.strip() for word in words.split(",")}
        if verb == "add":
            assert not listed & held
            held |= listed
        else:
            assert listed <= held
            held -= listed
    assert held == {str(address) for address in after}


def test_text_depends_on_values_alone() -> None:
    nodes = [IPv4Address(n) for n in random.Random(1).sample(range(1 << 24, 1 << 31), 200)]
    texts = {
        compile_ruleset(replace(plan(), nodes={Family.IPV4: frozenset(order)})).transaction
        for order in (nodes, nodes[::-1], sorted(nodes))
    }
    assert len(texts) == 1
