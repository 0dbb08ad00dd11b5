"""The network config: flannel's defaults, and every way of being wrong, by name."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.model.address import Family
from overlay.model.egress import EgressMode
from overlay.model.errors import ConfigError
from overlay.model.network import format_network_config, parse_network_config
from overlay.model.subnet import parse_subnet
from tests.unit import odd

V4: dict[str, Any] = {"Network": "10.244.0.0/16"}
V6: dict[str, Any] = {"EnableIPv6": True, "IPv6Network": "fd00:1::/48"}
V6_ONLY: dict[str, Any] = {**V6, "EnableIPv4": False}


@pytest.mark.parametrize(
    ("document", "family", "expected"),
    [
        pytest.param(V4, Family.IPV4, "/24 10.244.1.0 10.244.255.0", id="defaults"),
        pytest.param(
            {"Network": "10.0.0.0/26"}, Family.IPV4, "/28 10.0.0.16 10.0.0.48", id="small network"
        ),
        pytest.param(
            {**V4, "SubnetLen": 20}, Family.IPV4, "/20 10.244.16.0 10.244.240.0", id="length"
        ),
        pytest.param(
            {**V4, "SubnetMin": "10.244.5.0", "SubnetMax": "10.244.5.0"},
            Family.IPV4,
            "/24 10.244.5.0 10.244.5.0",
            id="range of one",
        ),
        pytest.param(V6_ONLY, Family.IPV6, "/64 fd00:1:0:1:: fd00:1:0:ffff::", id="IPv6 alone"),
    ],
)
def test_range(document: dict[str, Any], family: Family, expected: str) -> None:
    span = parse_network_config(json.dumps(document)).ranges[family]
    assert f"/{span.prefixlen} {span.first} {span.last}" == expected


@pytest.mark.parametrize(
    ("document", "key", "words"),
    [
        ({}, "Network", "missing"),
        ({**V4, "Netwrok": 1}, "Netwrok", "unknown key; known are"),
        ({**V4, "subnetLen": 24}, "subnetLen", "unknown key"),
        ({**V4, "EnableIPv4": "true"}, "EnableIPv4", "without quotes"),
        ({**V4, "EnableIPv6": 1}, "EnableIPv6", "without quotes"),
        ({**V4, "EnableNFTables": "yes"}, "EnableNFTables", "without quotes"),
        ({"EnableIPv4": False}, "EnableIPv4", "no family is left"),
        ({"Network": 10}, "Network", "in quotes"),
        ({"Network": ["10.0.0.0/8"]}, "Network", "in quotes"),
        ({"Network": "nonsense"}, "Network", "nonsense"),
        ({"Network": "10.244.1.0/16"}, "Network", "use 10.244.0.0/16"),
        ({"Network": "fd00::/48"}, "Network", "not an IPv4 network"),
        ({"Network": "127.0.0.0/8"}, "Network", "cannot hold pods"),
        ({"Network": "224.0.0.0/8"}, "Network", "cannot hold pods"),
        ({"Network": "0.0.0.0/0"}, "Network", "cannot hold pods"),
        ({"Network": "10.0.0.0/30"}, "Network", "too small; use /28 or wider"),
        ({**V4, "SubnetLen": "24"}, "SubnetLen", "without quotes"),
        ({**V4, "SubnetLen": 24.0}, "SubnetLen", "whole number"),
        ({**V4, "SubnetLen": True}, "SubnetLen", "whole number"),
        ({**V4, "SubnetLen": 31}, "SubnetLen", "at most 30"),
        ({**V4, "SubnetLen": -1}, "SubnetLen", "at most 30"),
        ({**V4, "SubnetLen": 17}, "SubnetLen", "raise SubnetLen to 18"),
        ({**V4, "SubnetMin": 5}, "SubnetMin", "in quotes"),
        ({**V4, "SubnetMin": "10.9.0.0"}, "SubnetMin", "outside Network 10.244.0.0/16"),
        ({**V4, "SubnetMax": "10.245.0.0"}, "SubnetMax", "outside Network 10.244.0.0/16"),
        ({**V4, "SubnetMin": "10.244.1.7"}, "SubnetMin", "use 10.244.1.0"),
        ({**V4, "SubnetMin": "fd00::"}, "SubnetMin", "fd00"),
        (
            {**V4, "SubnetMin": "10.244.9.0", "SubnetMax": "10.244.8.0"},
            "SubnetMin",
            "lies behind SubnetMax",
        ),
        ({**V4, "EnableIPv6": True}, "IPv6Network", "missing"),
        ({**V6_ONLY, "IPv6Network": "10.0.0.0/8"}, "IPv6Network", "not an IPv6 network"),
        ({**V6_ONLY, "IPv6Network": "fd00::1/48"}, "IPv6Network", "use fd00::/48"),
        ({**V6_ONLY, "IPv6Network": "::ffff:0:0/96"}, "IPv6Network", "cannot hold pods"),
        ({**V6_ONLY, "IPv6Network": "::/64"}, "IPv6Network", "cannot hold pods"),
        ({**V6_ONLY, "IPv6Network": "ff00::/16"}, "IPv6Network", "cannot hold pods"),
        ({**V6_ONLY, "IPv6SubnetLen": 127}, "IPv6SubnetLen", "at most 126"),
        ({**V6_ONLY, "IPv6SubnetLen": 49}, "IPv6SubnetLen", "raise IPv6SubnetLen to 50"),
        ({**V6_ONLY, "IPv6SubnetMin": "fd00:2::"}, "IPv6SubnetMin", "outside IPv6Network"),
        ({**V6_ONLY, "IPv6SubnetMax": "10.0.0.0"}, "IPv6SubnetMax", "10.0.0.0"),
        ({**V4, "Backend": "vxlan"}, "Backend", "write an object"),
        ({**V4, "Backend": {}}, "Backend.Type", "backend's name"),
        ({**V4, "Backend": {"Type": 3}}, "Backend.Type", "backend's name"),
        ({**V4, "Egress": "island"}, "Egress", "write an object"),
        ({**V4, "Egress": {"Mood": 1}}, "Egress.Mood", "unknown key"),
        ({**V4, "Egress": {"Mode": "nat"}}, "Egress.Mode", "flat, island, isolated"),
        ({**V4, "Egress": {"Mode": ["flat"]}}, "Egress.Mode", "flat, island, isolated"),
        (
            {**V4, "Egress": {"NonMasqueradeCIDRs": "10.0.0.0/8"}},
            "Egress.NonMasqueradeCIDRs",
            "list",
        ),
        (
            {**V4, "Egress": {"NonMasqueradeCIDRs": ["10.0.0.1/8"]}},
            "Egress.NonMasqueradeCIDRs",
            "use 10.0.0.0/8",
        ),
        ({**V4, "Egress": {"RandomFully": "no"}}, "Egress.RandomFully", "without quotes"),
        ([], "(whole)", "write a JSON object"),
    ],
)
def test_wrong_config_names_key_and_way_out(document: Any, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network_config(json.dumps(document))
    assert caught.value.key == key
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\x00", b"\xff", "[" * 100_000, " " * 2_000_000])
def test_text_that_is_no_json_is_a_config_error(text: str | bytes) -> None:
    with pytest.raises(ConfigError):
        parse_network_config(text)


def test_formatted_config_means_the_same() -> None:
    egress = {"Mode": "flat", "NonMasqueradeCIDRs": ["192.168.0.0/16", "fd09::/48"]}
    document = {**V4, **V6, "Backend": {"Type": "vxlan", "VNI": 7}, "Egress": egress}
    config = parse_network_config(json.dumps(document))
    assert config.egress.mode is EgressMode.FLAT
    assert parse_network_config(format_network_config(config)) == config


@pytest.mark.parametrize(
    ("subnet", "is_covered", "is_offered"),
    [
        ("10.244.1.0/24", True, True),
        ("10.244.0.0/24", True, False),  # the first one is left out
        ("10.244.1.0/25", True, False),
        ("10.245.0.0/24", False, False),
        ("fd00::/64", False, False),
    ],
)
def test_what_a_config_covers_and_offers(subnet: str, is_covered: bool, is_offered: bool) -> None:
    config = parse_network_config(json.dumps(V4))
    assert config.covers(parse_subnet(subnet)) == is_covered
    assert config.offers(parse_subnet(subnet)) == is_offered


likely = st.sampled_from(
    ["10.0.0.0/8", "fd00::/48", "10.0.0.0/26", "vxlan", "island", 0, 24, 30, 64, True]
)
families = ["Network", "SubnetLen", "SubnetMin", "SubnetMax"]
keys = st.sampled_from(
    ["EnableIPv4", "EnableIPv6", "Backend", "Egress", *families, *(f"IPv6{k}" for k in families)]
)
inner = st.dictionaries(
    st.sampled_from(["Type", "Mode", "NonMasqueradeCIDRs", "RandomFully", "VNI"]),
    odd.anything | likely | st.lists(likely, max_size=2),
)


def check(text: str | bytes) -> None:
    """Assert that a config is refused in few words, or means the same when written out."""
    config = odd.outcome(ConfigError, lambda: parse_network_config(text))
    if isinstance(config, ConfigError):
        assert len(str(config)) < 1000
        return
    assert parse_network_config(format_network_config(config)) == config
    for span in config.ranges.values():
        assert span.subnet(0) in span
        assert span.subnet(span.count - 1).subnet_of(span.network)  # type: ignore[arg-type]  # one family
        assert span.subnet(span.count) not in span


@given(st.dictionaries(keys, odd.anything | likely | inner), st.booleans())
@example({"Network": odd.Deep(900)}, False)
@example({"Backend": {"Type": "x", "A": float("nan")}}, True)
@example({"SubnetLen": 10**4000}, True)
@example({"Egress": {"Mode": odd.Deep(900)}}, True)
def test_any_document_parses_or_is_a_config_error(document: dict[str, Any], start: bool) -> None:
    check(odd.dumped({**(V4 if start else {}), **document}))


@given(st.binary() | odd.texts)
def test_any_text_parses_or_is_a_config_error(text: str | bytes) -> None:
    check(text)


@given(odd.damaged(json.dumps({**V4, **V6, "Backend": {"Type": "vxlan", "VNI": 7}}).encode()))
def test_damaged_config_parses_or_is_a_config_error(text: bytes) -> None:
    check(text)
