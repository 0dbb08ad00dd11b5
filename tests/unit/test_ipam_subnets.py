"""Subnets: what is free, and that a choice finds one exactly when there is one."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.ipam.subnets import count_all, count_free, is_free, merge, pick_subnet
from overlay.model.address import Family
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.subnet import Subnet, parse_subnet

V4 = parse_network_config('{"Network": "10.0.0.0/24", "SubnetLen": 28}')  # .16 to .240: 15
DUAL = parse_network_config(
    '{"Network": "10.0.0.0/24", "SubnetLen": 28, "EnableIPv6": true,'
    ' "IPv6Network": "fd00::/120", "IPv6SubnetLen": 124}'
)
# The IPv6 range is shorter and starts elsewhere.
UNEVEN = parse_network_config(
    '{"Network": "10.0.0.0/24", "SubnetLen": 28, "EnableIPv6": true, "IPv6Network": "fd00::/120",'
    ' "IPv6SubnetLen": 124, "IPv6SubnetMin": "fd00::40", "IPv6SubnetMax": "fd00::80"}'
)
HUGE = parse_network_config(
    '{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/16", "IPv6SubnetLen": 112}'
)


def subnets(texts: str) -> list[Subnet]:
    return [parse_subnet(text) for text in texts.split()]


@pytest.mark.parametrize(
    ("config", "taken", "index", "expected"),
    [
        pytest.param(V4, "", 0, "10.0.0.16/28", id="first subnet is left out"),
        pytest.param(V4, "", 14, "10.0.0.240/28", id="last"),
        pytest.param(V4, "10.0.0.16/28", 0, "10.0.0.32/28", id="taken"),
        pytest.param(V4, "10.0.0.0/25", 0, "10.0.0.128/28", id="wider, from before the range"),
        pytest.param(V4, "10.0.0.40/30", 1, "10.0.0.48/28", id="narrower, within a subnet"),
        pytest.param(V4, "10.0.0.240/32", 13, "10.0.0.224/28", id="one address at the end"),
        pytest.param(V4, "10.9.0.0/24 10.0.0.0/28", 0, "10.0.0.16/28", id="outside"),
        pytest.param(V4, "10.0.0.16/28,fd00::10/124", 0, "10.0.0.32/28", id="other family's too"),
        pytest.param(DUAL, "", 3, "10.0.0.64/28 fd00::40/124", id="pair of one number"),
        pytest.param(DUAL, "fd00::10/124", 0, "10.0.0.32/28 fd00::20/124", id="pair, IPv6 taken"),
        pytest.param(UNEVEN, "", 4, "10.0.0.80/28 fd00::80/124", id="pair in uneven ranges"),
        pytest.param(HUGE, "", 2**95, "fd00:8000::1:0/112", id="any size"),
    ],
)
def test_subnet_is_the_chosen_one_of_the_free(
    config: NetworkConfig, taken: str, index: int, expected: str
) -> None:
    assert str(pick_subnet(config, subnets(taken), lambda _: index)) == expected


def test_without_a_common_number_families_are_chosen_apart() -> None:
    taken = subnets("10.0.0.128/25 10.0.0.64/26 10.0.0.16/28 fd00::20/123")
    assert not is_free(parse_subnet("10.0.0.32/28,fd00::20/124"), taken)
    assert str(pick_subnet(DUAL, taken, lambda _: 0)) == "10.0.0.32/28 fd00::10/124"


def test_nothing_is_left() -> None:
    assert pick_subnet(V4, subnets("10.0.0.0/24"), lambda _: 0) is None
    assert pick_subnet(DUAL, subnets("fd00::/120"), lambda _: 0) is None
    assert count_free(DUAL, subnets("fd00::/120")) == 0


def test_counts() -> None:
    assert (count_all(V4), count_all(DUAL), count_all(UNEVEN)) == (15, 15, 5)
    assert count_all(HUGE) == 2**96 - 2 or count_all(HUGE) == 2**96 - 1
    assert count_free(V4, subnets("10.0.0.16/28 10.0.0.32/27 10.0.0.0/27")) == 12


network4 = st.builds(
    lambda start, length: IPv4Network((int(IPv4Address("10.0.0.0")) + start, length), strict=False),
    st.integers(-64, 320),
    st.integers(25, 32),
)
network6 = st.builds(
    lambda start, length: IPv6Network((int(IPv6Address("fd00::")) + start, length), strict=False),
    st.integers(0, 320),
    st.integers(121, 128),
)
anything = st.one_of(
    st.builds(Subnet, network4),
    st.builds(Subnet, st.none(), network6),
    st.builds(Subnet, network4, network6),
)


def every_free(config: NetworkConfig, family: Family, taken: Sequence[Subnet]) -> list[Subnet]:
    span = config.ranges[family]
    found = [span.subnet(index) for index in range(span.count)]
    each = [Subnet(n) if isinstance(n, IPv4Network) else Subnet(None, n) for n in found]
    return [subnet for subnet in each if is_free(subnet, taken)]


@given(
    st.sampled_from([V4, DUAL, UNEVEN]),
    st.lists(anything, max_size=25),
    st.integers(min_value=0),
)
def test_choice_is_offered_and_free_and_there_is_one_exactly_when_there_can_be(
    config: NetworkConfig, taken: list[Subnet], number: int
) -> None:
    free = [every_free(config, family, taken) for family in config.families]
    chosen = pick_subnet(config, taken, lambda count: number % count)
    assert (chosen is not None) == all(free)
    assert count_free(config, taken) == min(map(len, free))
    if chosen is not None:
        assert config.offers(chosen)
        assert is_free(chosen, taken)


@given(st.lists(anything, max_size=10))
def test_every_free_subnet_can_be_chosen(taken: list[Subnet]) -> None:
    free = every_free(V4, Family.IPV4, taken)
    chosen = {
        pick_subnet(V4, taken, lambda _, index=index: index)  # type: ignore[misc]  # bound early
        for index in range(len(free))
    }
    assert chosen == set(free)


spans = st.tuples(st.integers(0, 50), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(spans))
def test_merged_spans_cover_the_same_and_never_touch(given_spans: list[tuple[int, int]]) -> None:
    merged = merge(given_spans)
    covered = {n for first, last in given_spans for n in range(first, last + 1)}
    assert {n for first, last in merged for n in range(first, last + 1)} == covered
    assert all(left[1] + 1 < right[0] for left, right in pairwise(merged))
