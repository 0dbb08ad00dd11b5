"""Metrics that spread the routes to peers over the kernel's hash of next hops."""

from collections import Counter
from ipaddress import IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.kernel.notices import Change, is_news
from overlay.model.kernel import ForeignRoute, KernelObject, Key, Route
from overlay.model.metric import peer_metric, spread_metric
from overlay.model.network import parse_network_config
from overlay.plan.planner import desired
from tests.unit.worlds import DUAL, by_key, lease, site

WIDE = '{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}'


@pytest.mark.parametrize(
    ("config", "is_spread"),
    [
        ('{"Network":"10.244.0.0/16"}', False),
        ('{"Network":"10.240.0.0/12"}', False),
        ('{"Network":"10.224.0.0/11"}', True),
        ('{"Network":"10.244.0.0/16","SubnetLen":28}', False),
        ('{"Network":"10.244.0.0/16","SubnetLen":29}', True),
        # Whoever has a subnet outside of the span to choose from is a peer, too.
        ('{"Network":"10.0.0.0/8","SubnetMin":"10.1.0.0","SubnetMax":"10.8.0.0"}', True),
    ],
)
def test_routes_are_spread_where_there_is_room_for_many(config: str, is_spread: bool) -> None:
    parsed = parse_network_config(config)
    (span,) = parsed.ranges.values()
    assert (peer_metric(parsed.ranges, span.subnet(0)) > 0) is is_spread


def test_ipv6_has_no_metric_and_nodes_have_theirs() -> None:
    for config, expected in ((DUAL, 0), (WIDE, 1 + (244 * 256 + 2) % 1024)):
        plan = desired(site(config), by_key(lease(2))).objects.values()
        metrics = {str(item.prefix): item.metric for item in plan if isinstance(item, Route)}
        assert metrics == {
            "10.244.2.0/24": expected,
            "fd00:1:0:2::/64": 0,
            "192.0.2.2/32": int(ip_network("192.0.2.2/32").network_address),
            "2001:db8::2/128": 0,
        }


@given(st.integers(16, 30), st.integers(0, 2**16 - 1), st.integers(1, 20000))
def test_neighbors_share_no_bucket_until_all_are_taken(length: int, first: int, count: int) -> None:
    size = 1 << (32 - length)
    numbers = range(first, min(first + count, 1 << length))
    used = Counter(spread_metric(IPv4Network((n * size, length))) for n in numbers)
    assert all(0 < metric <= 1024 for metric in used)
    assert max(used.values()) == -(-len(numbers) // 1024)


@given(st.integers(0, 2**16 - 1), st.integers(0, 3000), st.booleans(), st.booleans())
def test_foreign_route_is_news_where_it_goes_before_ours_or_took_its_place(
    number: int, metric: int, is_spread: bool, is_there: bool
) -> None:
    prefix = IPv4Network((number << 8, 24))
    ours = Route(prefix, "overlay.1", metric=spread_metric(prefix) if is_spread else 0)
    mirror: dict[Key, KernelObject] = {ours.key: ours} if is_there else {}
    foreign = ForeignRoute(prefix, metric, 4, "eth0")
    told = is_news(Change("set", foreign.key, foreign), mirror)
    assert told is (is_there and metric <= ours.metric)
    assert not is_news(Change("del", foreign.key), {}), "it was none of ours"
