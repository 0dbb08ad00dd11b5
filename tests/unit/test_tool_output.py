"""What nft and iptables print, damaged: read as far as it makes sense, and nothing escapes."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.kernel import iptables
from overlay.kernel.nft import NftError, _refusal
from overlay.kernel.nft_table import _parse_listing
from tests.unit import odd

LISTING = """table inet overlay {
\tset overlay_pods4 {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 10.244.0.0/16,
\t\t\t     10.9.0.1 }
\t}

\tset overlay_pods6 {
\t\ttype ipv6_addr
\t}

\tchain forward {
\t\ttype filter hook forward priority filter; policy accept;
\t\tip saddr @overlay_pods4 accept
\t}
}
"""
RULES = """-P INPUT ACCEPT
-P FORWARD DROP
-N DOCKER
-N OVERLAY-FORWARD
-A FORWARD -m comment --comment "overlay-fabric" -j OVERLAY-FORWARD
-A FORWARD -m comment --comment "a \\"b\\" -j DROP" -j ACCEPT
-A DOCKER ! -i docker0 -j REJECT --reject-with icmp-port-unreachable
"""
CHAINS = {
    "nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {
            "chain": {
                "family": "ip",
                "table": "filter",
                "name": "FORWARD",
                "handle": 2,
                "type": "filter",
                "hook": "forward",
                "prio": 0,
                "policy": "drop",
            }
        },
    ]
}


def test_listing_is_split_into_elements_and_the_rest() -> None:
    static, sets = _parse_listing(LISTING)
    assert {name: sorted(found) for name, found in sets.items()} == {
        "overlay_pods4": ["10.244.0.0/16", "10.9.0.1"],
        "overlay_pods6": [],
    }
    assert "10.9.0.1" not in static
    assert "ip saddr @overlay_pods4 accept" in static


@given(odd.texts | odd.damaged(LISTING.encode()).map(lambda raw: raw.decode(errors="replace")))
def test_another_listing_never_passes_for_ours(text: str) -> None:
    """Damage shows, in the elements or in the rest."""
    static, sets = _parse_listing(text)
    if (static, sets) == _parse_listing(LISTING):
        # Only blanks within the elements, their order or their number may differ.
        assert set(text.replace(",", " ").split()) == set(LISTING.replace(",", " ").split())


def test_rules_are_sorted_by_chain_and_read_back() -> None:
    chains = iptables._parse_rules(RULES)
    assert list(chains) == ["INPUT", "FORWARD", "DOCKER", "OVERLAY-FORWARD"]
    assert [line for line in chains["FORWARD"] if iptables._drops(line)] == ["-P FORWARD DROP"]
    assert iptables._leads_to_us(["-A FORWARD -j ACCEPT", chains["FORWARD"][1]])
    again = iptables._parse_rules("\n".join(line for lines in chains.values() for line in lines))
    assert again == chains


@given(odd.texts | odd.damaged(RULES.encode()).map(lambda raw: raw.decode(errors="replace")))
@example("-A FORWARD -j")
@example("-P FORWARD")
@example('-A FORWARD "')
@example("-P")
def test_any_rules_are_read(text: str) -> None:
    chains = iptables._parse_rules(text)
    for lines in chains.values():
        for line in lines:
            assert "\n" not in line or '"' in line or "'" in line
            assert isinstance(iptables._drops(line), bool)
        assert isinstance(iptables._leads_to_us(lines), bool)


@given(odd.anything.map(odd.dumped) | odd.damaged(json.dumps(CHAINS).encode()))
@example(odd.dumped({"nftables": None}))
@example(odd.dumped({"nftables": [None, 5, "chain", {"chain": None}, {"chain": {"family": 5}}]}))
@example(odd.dumped({"nftables": {"chain": 1}}))
def test_any_answer_of_nft_is_a_list_of_chains(text: bytes) -> None:
    for chain in iptables._parse_chains(text.decode(errors="replace")):
        assert {type(chain[name]) for name in ("family", "table", "name")} == {str}


def test_chains_are_read() -> None:
    (chain,) = iptables._parse_chains(json.dumps(CHAINS))
    expected: Any = CHAINS["nftables"][1]["chain"]
    assert chain == expected


@given(odd.texts, st.integers(-255, 255), odd.texts)
@example("/dev/stdin:99999999:1-2: Error: x", 1, "a\nb")
@example("/dev/stdin:0:1-2: Error: x", 1, "a\nb")
def test_any_complaint_of_nft_is_an_nft_error(stderr: str, status: int, text: str) -> None:
    found = _refusal(stderr, status, text)
    assert isinstance(found, NftError)
    assert str(found).startswith("nftables: ")
    assert len(found.source) <= len(text)


@pytest.mark.parametrize(("line", "source"), [(1, "a"), (2, "b"), (3, "")])
def test_complaint_names_the_line(line: int, source: str) -> None:
    found = _refusal(f"/dev/stdin:{line}:1-4: Error: syntax error", 1, "a\n\tb\n")
    assert (found.line, found.source) == (line, source)
