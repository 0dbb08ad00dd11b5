"""Lease values as flannel and we write them, and what is no lease."""

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.model.address import Family
from overlay.model.errors import LeaseFormatError
from overlay.model.lease import (
    LeaseAttributes,
    Owner,
    format_attributes,
    parse_attributes,
    parse_lease,
)
from overlay.model.subnet import parse_subnet_key
from tests.unit import odd

KEY = "10.244.3.0-24"
FLANNEL = (
    b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}'
)


def test_flannels_lease_has_no_owner() -> None:
    lease = parse_lease(KEY, FLANNEL, lease_id=7)
    assert lease.attributes.owner is None
    assert lease.node == "192.0.2.1"
    assert not lease.is_permanent
    assert lease.attributes.backend_data[Family.IPV4]["VNI"] == 1


def test_our_value_reads_as_it_was_written() -> None:
    attributes = LeaseAttributes(
        "vxlan",
        {Family.IPV4: ip_address("192.0.2.1"), Family.IPV6: ip_address("fc00::1")},
        {Family.IPV4: {"VNI": 1}, Family.IPV6: {"VNI": 1}},
        Owner("id", "name", "1.0", "2026-01-01T00:00:00Z"),
    )
    assert parse_attributes(KEY, format_attributes(attributes)) == attributes


def test_flannel_can_read_a_lease_without_ipv4() -> None:
    attributes = LeaseAttributes("vxlan", {Family.IPV6: ip_address("fc00::1")})
    assert json.loads(format_attributes(attributes))["PublicIP"] == "0.0.0.0"
    assert parse_attributes(KEY, format_attributes(attributes)) == attributes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BackendType": None}, "BackendType None is not a name"),
        ({"BackendType": ""}, "is not a name"),
        ({"BackendType": 5}, "is not a name"),
        ({"PublicIP": "nonsense"}, "PublicIP: 'nonsense'"),
        ({"PublicIP": 7}, "PublicIP 7 is not an address"),
        ({"PublicIP": "fc00::1"}, "not an IPv4 address"),
        ({"PublicIP": "127.0.0.1"}, "cannot be the address of a node"),
        ({"PublicIP": "224.0.0.1"}, "cannot be the address of a node"),
        ({"PublicIP": "255.255.255.255"}, "cannot be the address of a node"),
        ({"PublicIPv6": "192.0.2.1"}, "not an IPv6 address"),
        ({"PublicIP": None}, "neither PublicIP nor PublicIPv6"),
        ({"BackendData": "x"}, "BackendData is not an object"),
        ({"BackendV6Data": []}, "BackendV6Data is not an object"),
    ],
)
def test_bad_value_is_named(change: dict[str, Any], words: str) -> None:
    value = json.dumps({**json.loads(FLANNEL), **change}).encode()
    with pytest.raises(LeaseFormatError) as caught:
        parse_lease(KEY, value)
    assert KEY in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "value", [b"", b"{", b"\xff", b"null", b"[]", b"[" * 60_000, b" " * 100_000]
)
def test_what_is_no_object_is_a_format_error(value: bytes) -> None:
    with pytest.raises(LeaseFormatError):
        parse_attributes(KEY, value)


@pytest.mark.parametrize("facts", [None, 5, {}, {"NodeID": 5}, ["NodeID"]])
def test_ill_formed_facts_of_ours_count_as_absent(facts: Any) -> None:
    value = json.dumps({**json.loads(FLANNEL), "Overlay": facts}).encode()
    assert parse_attributes(KEY, value).owner is None


names = st.sampled_from(
    ["PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "Overlay"]
)


def check(key: str, value: bytes) -> None:
    """Assert that ``value`` is refused in one line, or read into what is written the same way."""
    lease = odd.outcome(LeaseFormatError, lambda: parse_lease(key, value))
    if isinstance(lease, LeaseFormatError):
        assert len(str(lease)) < 1000 + 2 * len(key)
        return
    assert lease.subnet.key == key or parse_subnet_key(lease.subnet.key) == lease.subnet
    again = format_attributes(lease.attributes)
    json.loads(again, parse_constant=pytest.fail)
    assert parse_attributes(key, again) == lease.attributes
    assert lease.node


@given(st.dictionaries(names, odd.anything))
@example({"BackendData": {"VNI": float("nan")}})
@example({"BackendType": odd.Deep(900)})
@example({"BackendData": {"a": odd.Deep(900)}})
@example({"Overlay": {"NodeID": "\ud800"}})
@example({"PublicIP": 10**4000})
@example({"PublicIP": [], "PublicIPv6": {}})
def test_any_object_parses_or_is_a_format_error(document: dict[str, Any]) -> None:
    check(KEY, odd.dumped({**json.loads(FLANNEL), **document}))


@given(odd.texts, st.binary())
def test_any_key_and_value_parse_or_are_a_format_error(key: str, value: bytes) -> None:
    check(key, value)
    check(key, FLANNEL)


@given(odd.damaged(FLANNEL), odd.damaged(b"10.244.3.0-24&fd00:1:2:3::-64"))
def test_damaged_lease_parses_or_is_a_format_error(value: bytes, key: bytes) -> None:
    check(key.decode(errors="backslashreplace"), FLANNEL)
    check(KEY, value)
