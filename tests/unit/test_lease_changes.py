"""What changed between two views, told by a journal as by a comparison of all; what is taken."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.model.address import Family
from overlay.model.lease import Lease, LeaseAttributes
from overlay.model.subnet import subnet_of
from overlay.model.versioned import MapHistory, changed_keys
from overlay.plan.places import Places
from overlay.plan.planner import Planner, desired
from overlay.plan.prune import Prune, PruneLimit
from overlay.store.etcd_table import KeyValue, LeaseReader, LeaseTable, Listing
from tests.unit.worlds import DUAL, V4, by_key, lease, site

ROOT = "/test/"


def key_value(number: int, revision: int, last: int) -> KeyValue:
    """Return a lease of its own for each number and ``last``; None of it where that is 0."""
    key = f"{ROOT}subnets/10.244.{number}.0-24".encode()
    data = f'{{"VNI":1,"VtepMAC":"02:00:00:00:{number:02}:{last:02}"}}'
    head = f'"PublicIP":"198.51.100.{10 * number + last}","BackendType":"vxlan"'
    value = f'{{{head},"BackendData":{data}}}'.encode()
    return KeyValue(key, value if last else None, revision, revision)


def differing(before: Mapping[str, Lease], after: Mapping[str, Lease]) -> set[str]:
    return {key for key in {*before, *after} if before.get(key) is not after.get(key)}


events = st.tuples(st.integers(1, 6), st.integers(0, 3))


@given(st.lists(st.lists(events, max_size=4), max_size=8), st.integers(0, 8))
def test_views_of_a_table_know_what_lies_between_them(
    steps: list[list[tuple[int, int]]], relisted_at: int
) -> None:
    table = LeaseTable(LeaseReader(ROOT))
    views = [table.view()]
    for revision, step in enumerate(steps, 1):
        if revision == relisted_at:
            table.replace(Listing(revision, 1, (key_value(1, revision, 9),)))
        table.apply(key_value(subnet, revision, last) for subnet, last in step)
        views.append(table.view())
    for older, before in enumerate(views):
        for after in views[older:]:
            assert differing(before.leases, after.leases) <= set(
                changed_keys(before.leases, after.leases)
            )


def test_a_view_that_is_long_ago_is_compared_with_all() -> None:
    history = MapHistory(by_key(lease(1)))
    before = history.snapshot()
    for number in range(300):
        history.put("10.244.9.0-24", lease(9, revision=number))
        after = history.snapshot()
    assert after.changed_since(before) is None
    assert list(changed_keys(before, after)) == ["10.244.9.0-24"]


@given(st.lists(st.lists(events, max_size=3), min_size=1, max_size=8))
def test_planner_told_by_a_journal_ends_where_desired_does(
    steps: list[list[tuple[int, int]]],
) -> None:
    table, planner = LeaseTable(LeaseReader(ROOT)), Planner(site(DUAL))
    for revision, step in enumerate(steps, 1):
        table.apply(key_value(subnet, revision, last) for subnet, last in step)
        leases = table.view().leases
        planner.update(leases)
        assert planner.plan.objects == desired(planner.site, leases).objects


# Subnets inside one another, of one, two and four times the size; some nodes share addresses.
contested = st.builds(
    lambda number, length, public, mac, revision: lease(
        number,
        at=subnet_of(ip_network(f"10.244.{number}.0/{length}", strict=False)),
        families=[Family.IPV4],
        public=public,
        macs=f"n{mac}",
        revision=revision,
    ),
    *(st.integers(0, 3), st.sampled_from([22, 23, 24, 24]), st.integers(2, 6)),
    *(st.integers(2, 5), st.integers(1, 9)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(contested, max_size=3), min_size=1, max_size=10), st.data())
def test_planner_of_contested_addresses_ends_where_desired_does(
    steps: list[list[Lease]], data: st.DataObject
) -> None:
    planner, history = Planner(site(V4, i=9)), MapHistory[str, Lease]()
    for step in steps:
        known = history.snapshot()
        for key in data.draw(st.sets(st.sampled_from(sorted(known)))) if known else ():
            history.discard(key)
        for found in step:
            history.put(found.subnet.key, found)
        leases = history.snapshot()
        planner.update(leases)
        whole = desired(planner.site, leases)
        assert planner.plan.objects == whole.objects
        assert planner.plan.peers.keys() == whole.peers.keys()
        assert planner.plan.problems.keys() == whole.problems.keys()
        assert planner.plan.addresses() == whole.addresses()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(contested, max_size=4), min_size=1, max_size=5), contested)
def test_places_of_subnets_of_any_size_are_taken_where_one_overlaps(
    steps: list[list[Lease]], probe: Lease
) -> None:
    followed, alone = Places(), replace(probe, attributes=LeaseAttributes("vxlan"))
    for step in steps:
        leases = by_key(*step)
        followed.follow(leases)
        assert followed.is_taken(alone) is any(
            each.subnet.overlaps(probe.subnet) for each in leases.values()
        )


class Index(Places):
    """Places that are asked about every lease."""

    def may_be_taken_since(self, lease: Lease) -> bool:
        del lease
        return True


@settings(max_examples=300)
@given(
    st.lists(st.lists(contested, max_size=3), min_size=1, max_size=8),
    st.sampled_from([0, 1, 2]),
    st.data(),
)
def test_what_is_held_is_the_same_with_places_that_are_kept(
    steps: list[list[Lease]], limit: int, data: st.DataObject
) -> None:
    history, places = MapHistory[str, Lease](), Places()
    kept = alone = Prune()
    for number, step in enumerate(steps):
        known = history.snapshot()
        for key in data.draw(st.sets(st.sampled_from(sorted(known)))) if known else ():
            history.discard(key)
        for found in step:
            history.put(found.subnet.key, found)
        leases, most = history.snapshot(), PruneLimit(count=limit)
        kept = kept.after(leases, "own", number * 0.4, most, places)
        alone = alone.after(leases, "own", number * 0.4, most, Index())
        assert kept == alone


drawn = st.dictionaries(st.integers(1, 6), st.sampled_from([None, 7, 8]), max_size=6)


@settings(max_examples=200)
@given(st.lists(drawn, min_size=1, max_size=5), st.integers(1, 9))
def test_places_followed_are_those_of_the_last_leases(
    steps: list[dict[int, int | None]], asked: int
) -> None:
    followed = Places()
    for step in steps:
        leases = by_key(*(lease(i, public=public) for i, public in step.items()))
        followed.follow(leases)
    fresh = Places()
    fresh.follow(leases)
    for public in (None, 7, 8):
        probe = lease(asked, public=public)
        same = [
            each
            for each in leases.values()
            if each.subnet == probe.subnet
            or set(each.attributes.public.values()) & set(probe.attributes.public.values())
        ]
        assert followed.is_taken(probe) is fresh.is_taken(probe) is bool(same)
