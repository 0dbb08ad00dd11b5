"""Mode, MTU and ranges of a network configuration: what is taken, and how a mistake is named."""

import json
from typing import Any

import pytest

from overlay.agent.cni_config import demand, wanted_mode, wanted_mtu
from overlay.agent.cni_request import BAD_CONFIG, CniError, CniRequest, parse_request
from overlay.ipam.pool import Pool
from overlay.model.subnet import parse_subnet

VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
}
DUAL = parse_subnet("10.1.0.0/24,fd00::/64")


def request_of(**keys: Any) -> CniRequest:
    document = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay", **keys}
    return parse_request(VARIABLES, json.dumps(document).encode())


def ranges(*sets: Any, **runtime: Any) -> CniRequest:
    return request_of(runtimeConfig={"ipRanges": list(sets), **runtime})


def refusal(request: CniRequest, subnet: str = "") -> str:
    with pytest.raises(CniError) as caught:
        demand(request, parse_subnet(subnet) if subnet else DUAL)
    assert caught.value.code == BAD_CONFIG
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "mode"), [({}, "ptp"), ({"mode": None}, "ptp"), ({"mode": "bridge"}, "bridge")]
)
def test_mode_is_ptp_unless_told(given: dict[str, Any], mode: str) -> None:
    assert wanted_mode(request_of(**given)) == mode


@pytest.mark.parametrize("mode", ["", "l2", "BRIDGE", 5, False, ["ptp"], {"a": 1}, "x" * 500])
def test_unknown_mode_is_named_with_the_choices(mode: Any) -> None:
    with pytest.raises(CniError, match=r'"mode" .* is none of "ptp", "bridge"') as caught:
        wanted_mode(request_of(mode=mode))
    assert caught.value.code == BAD_CONFIG
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(("given", "mtu"), [({}, 1430), ({"mtu": 0}, 1430), ({"mtu": 1400}, 1400)])
def test_mtu_is_the_fabrics_unless_told(given: dict[str, Any], mtu: int) -> None:
    assert wanted_mtu(request_of(**given), 1430) == mtu


@pytest.mark.parametrize("mtu", [1431, -1, 65536, "1400", 1400.0, True, None, [], 10**30])
def test_impossible_mtu_is_named(mtu: Any) -> None:
    with pytest.raises(CniError, match=r'^"mtu" '):
        wanted_mtu(request_of(mtu=mtu), 1430)


def test_key_is_read_in_any_case() -> None:
    runtime = {"IPRanges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9"}]]}
    assert spans(request_of(runtimeConfig=runtime)) == "10.1.0.9-10.1.0.255"


def spans(request: CniRequest) -> str:
    return " ".join(map(str, demand(request, DUAL).spans))


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        pytest.param([], "", id="none"),
        pytest.param([[{"subnet": "10.1.0.0/24"}]], "10.1.0.0-10.1.0.255", id="whole lease"),
        pytest.param(
            [[{"subnet": "10.0.0.0/8"}]], "10.1.0.0-10.1.0.255", id="wider: as far as the lease"
        ),
        pytest.param([[{"subnet": "10.1.0.16/28"}]], "10.1.0.16-10.1.0.31", id="narrower"),
        pytest.param(
            [[{"subnet": "10.0.0.0/8", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.9"}]],
            "10.1.0.9",
            id="one address",
        ),
        pytest.param(
            [[{"subnet": "10.1.0.7/24", "rangeEnd": "10.1.0.9", "routes": []}]],
            "10.1.0.0-10.1.0.9",
            id="host bits and unknown keys",
        ),
        pytest.param(
            [[{"subnet": "10.1.0.16/30"}, {"subnet": "10.1.0.32/30"}], [{"subnet": "fd00::/120"}]],
            "10.1.0.16-10.1.0.19 10.1.0.32-10.1.0.35 fd00::-fd00::ff",
            id="several, both families",
        ),
        pytest.param(
            [[{"subnet": "10.1.0.16/30", "gateway": "10.1.0.17"}]],
            "10.1.0.16 10.1.0.18-10.1.0.19",
            id="gateway within",
        ),
        pytest.param(
            [[{"subnet": "10.1.0.16/30", "gateway": "10.1.0.1", "rangeStart": None}]],
            "10.1.0.16-10.1.0.19",
            id="gateway beside",
        ),
    ],
)
def test_ranges_are_those_within_the_lease(sets: list[Any], expected: str) -> None:
    assert spans(ranges(*sets)) == expected


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (5, '"ipRanges" 5 is not a list'),
        ({}, '"ipRanges" {} is not a list'),
        ("", "\"ipRanges\" '' is not a list"),
        ([5], '"ipRanges[0]" 5 is not a list of ranges'),
        ([[]], '"ipRanges[0]" [] is not a list of ranges'),
        ([[5]], '"ipRanges[0][0]" 5 is not a range'),
        ([{"subnet": "10.1.0.0/24"}], '"ipRanges[0]"'),
        ([[{}]], '"ipRanges[0][0].subnet" is missing'),
        ([[{"subnet": 7}]], '"ipRanges[0][0].subnet" 7 is not an address'),
        ([[{"subnet": "10.1.0.0/99"}]], '"ipRanges[0][0].subnet": '),
        ([[{"subnet": "fd00::%eth0/64"}]], '"ipRanges[0][0].subnet"'),
        ([[{"subnet": "10.2.0.0/24"}]], '"ipRanges[0][0].subnet" 10.2.0.0/24 lies outside'),
        (
            [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.2.0.0/24"}]],
            '"ipRanges[0][1].subnet" 10.2.0.0/24 lies outside this node\'s subnet 10.1.0.0/24',
        ),
        (
            [[{"subnet": "10.0.0.0/8", "rangeStart": "10.2.0.1"}]],
            '"ipRanges[0][0].rangeStart" 10.2.0.1 lies outside this node\'s subnet 10.1.0.0/24',
        ),
        (
            [[{"subnet": "10.0.0.0/8", "rangeEnd": "10.2.0.1"}]],
            '"ipRanges[0][0].rangeEnd" 10.2.0.1 lies outside',
        ),
        (
            [[{"subnet": "10.1.0.0/28", "rangeStart": "10.1.0.99"}]],
            '"ipRanges[0][0].rangeStart" 10.1.0.99 is not in "subnet" 10.1.0.0/28',
        ),
        (
            [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.3"}]],
            '"ipRanges[0][0].rangeEnd" 10.1.0.3 is before "rangeStart" 10.1.0.9',
        ),
        (
            [[{"subnet": "10.1.0.0/24", "rangeStart": "fd00::9"}]],
            '"ipRanges[0][0].rangeStart" fd00::9 is not in "subnet"',
        ),
        ([[{"subnet": "10.1.0.0/24", "rangeStart": ""}]], "\"ipRanges[0][0].rangeStart\" '' is"),
        ([[{"subnet": "10.1.0.0/24", "gateway": "x"}]], '"ipRanges[0][0].gateway": '),
        (
            [[{"subnet": "10.1.0.9/32", "gateway": "10.1.0.9"}]],
            '"ipRanges[0][0]" has no address beside its "gateway" 10.1.0.9',
        ),
        (
            [[{"subnet": "10.1.0.0/28"}], [{"subnet": "10.1.0.16/28"}]],
            '"ipRanges[1][0]": "ipRanges[0]" has IPv4 already',
        ),
    ],
)
def test_wrong_range_is_named(sets: Any, named: str) -> None:
    text = refusal(request_of(runtimeConfig={"ipRanges": sets}))
    assert named in text
    assert len(text) < 200


def test_range_of_a_family_that_the_node_lacks_is_refused() -> None:
    text = refusal(ranges([{"subnet": "fd00::/64"}]), "10.1.0.0/24")
    assert text == '"ipRanges[0][0].subnet" fd00::/64 lies outside this node\'s subnet 10.1.0.0/24'


def test_addresses_and_ranges_apply_together() -> None:
    request = ranges([{"subnet": "10.1.0.16/28"}], ips=["10.1.0.20"])
    pool = Pool()
    assert [str(a) for a in pool.allocate(DUAL, demand(request, DUAL))] == ["10.1.0.20", "fd00::2"]
    assert str(pool.allocate(DUAL, demand(ranges([{"subnet": "10.1.0.16/28"}]), DUAL))[0]) == (
        "10.1.0.16"
    )


@pytest.mark.parametrize(
    ("ips", "named"),
    [
        ("", "\"ips\" '' is not a list"),
        (0, '"ips" 0 is not a list'),
        (False, '"ips" False is not a list'),
        ({}, '"ips" {} is not a list'),
        ([""], "\"ips\": ''"),
        ([None], '"ips": None is not an address'),
        ([0], '"ips": 0 is not an address'),
        (["10.1.0.5", "10.1.0.5"], '"ips": 10.1.0.5 is there twice'),
        (["10.1.0.5/24", "10.1.0.5"], '"ips": 10.1.0.5 is there twice'),
        (["::ffff:10.1.0.5"], '"ips": ::ffff:10.1.0.5 is an IPv4 address in IPv6\'s form'),
        (["fd00::5%eth0"], "\"ips\": 'fd00::5%eth0' is not an address"),
        (["fd00::5%eth0/64"], "\"ips\": 'fd00::5%eth0/64' is not an address"),
    ],
)
def test_odd_addresses_are_named(ips: Any, named: str) -> None:
    assert named in refusal(request_of(runtimeConfig={"ips": ips}))


@pytest.mark.parametrize("ips", [[], None])
def test_no_addresses_ask_for_none(ips: Any) -> None:
    assert demand(request_of(runtimeConfig={"ips": ips}), DUAL).addresses == ()
