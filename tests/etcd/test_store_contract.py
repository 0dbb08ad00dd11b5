"""What every lease store promises: the one in memory, a real etcd, and an API server of nodes.

Kubernetes gives each node its subnet, so what is about giving them is asked of the others alone.
"""

import threading
from dataclasses import replace

import pytest

from overlay.model.address import Family
from overlay.model.errors import ConfigError, UsageError
from overlay.model.lease import Lease
from overlay.model.network import parse_network_config
from overlay.model.subnet import Subnet, parse_subnet
from overlay.store.base import (
    KEY_OVERLAP_S,
    ConfigConflictError,
    ContestedLeaseError,
    DuplicateNodeError,
    LeaseLostError,
    LeaseStore,
    NoFreeSubnetError,
    SubnetTakenError,
)
from overlay.store.etcd import EtcdLeaseStore
from overlay.store.memory import MemoryLeaseStore
from tests.etcd.support import CONFIG, attributes, claim, eventually, watched
from tests.kube.cluster import PlantedCluster

SMALL = '{"Network": "10.244.0.0/22", "SubnetLen": 24}'  # 10.244.1.0/24 to 10.244.3.0/24
DUAL = (
    '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:1::/48",'
    ' "IPv6SubnetLen": 64}'
)
FIRST = parse_subnet("10.244.1.0/24")
FIFTH = parse_subnet("10.244.5.0/24")


@pytest.fixture(params=["memory", "etcd", "kube"])
def store(request: pytest.FixtureRequest) -> LeaseStore:
    if request.param == "memory":
        return MemoryLeaseStore()
    found: EtcdLeaseStore | PlantedCluster = request.getfixturevalue(f"{request.param}_store")
    return found


gives_subnets = pytest.mark.parametrize("store", ["memory", "etcd"], indirect=True)


def plant(store: LeaseStore, subnet: Subnet, number: int, *, node: bool = False) -> None:
    """Write a lease as flannel would; ``node`` adds our own facts."""
    if isinstance(store, PlantedCluster):
        store.annotate_as_flannel(number, attributes(number))
    elif isinstance(store, MemoryLeaseStore):
        store.put_lease(subnet, attributes(number, node=node), 60)
    else:
        assert isinstance(store, EtcdLeaseStore)
        lease_id = store._writer.grant(60)
        assert store._writer.create(subnet, attributes(number, node=node), lease_id)


def configure(store: LeaseStore, text: str) -> None:
    if isinstance(store, PlantedCluster):
        store.config_file.write_text(text)
    else:
        store.write_config(text)


def test_new_claim_is_in_the_view_as_it_was_returned(store: LeaseStore) -> None:
    lease = store.acquire(claim(1))
    view = store.view()
    assert view.leases == {lease.subnet.key: lease}
    assert view.revision >= lease.mod_revision
    assert claim(1).config.offers(lease.subnet)
    assert lease.is_permanent is isinstance(store, PlantedCluster)


def test_claiming_again_keeps_subnet_and_writes_attributes(store: LeaseStore) -> None:
    first = store.acquire(claim(1))
    moved = replace(attributes(9), owner=attributes(1).owner)
    assured = frozenset({first.mod_revision})
    again = store.acquire(replace(claim(1), attributes=moved, assured=assured))
    assert again.subnet == first.subnet
    assert again.create_revision == first.create_revision
    assert store.view().leases[first.subnet.key].attributes.public == attributes(9).public


def test_lease_of_a_node_elsewhere_is_contested_and_left_alone(store: LeaseStore) -> None:
    """The claimant has its id, but another address: itself, moved, or a living twin."""
    first = store.acquire(claim(1))
    moved = replace(attributes(9), owner=attributes(1).owner)
    with pytest.raises(ContestedLeaseError) as caught:
        store.acquire(replace(claim(1), attributes=moved))
    assert caught.value.lease == first
    assert store.view().leases == {first.subnet.key: first}
    store.challenge(moved)  # without which nothing changes where a lease has no time
    renewed = store.renew(first, attributes(1), 60)
    late = replace(claim(1), attributes=moved, assured=frozenset({first.mod_revision}))
    with pytest.raises(ContestedLeaseError):
        store.acquire(late)
    assert store.view().leases == {first.subnet.key: renewed}


def test_challenge_shows_in_the_views_of_all_and_again_when_repeated(store: LeaseStore) -> None:
    asker = attributes(1)
    with watched(store) as seen:
        seen.wait(lambda view: not view.challenges)
        store.challenge(asker)
        first = seen.wait(lambda view: "id-1" in view.challenges).challenges["id-1"]
        assert first.attributes == asker
        assert store.view().challenges == {"id-1": first}
        store.challenge(asker)
        seen.wait(lambda v: v.challenges["id-1"].mod_revision > first.mod_revision)
    assert store.acquire(claim(1)).mod_revision > first.mod_revision
    assert not seen.troubles


def test_key_of_the_fabric_is_made_once_and_shows_in_the_views_of_all(store: LeaseStore) -> None:
    assert store.view().fabric_keys.counting == ()
    with watched(store) as seen:
        assert store.make_fabric_key()
        keys = seen.wait(lambda view: view.fabric_keys.newest is not None).fabric_keys
        assert not store.make_fabric_key()
    assert store.view().fabric_keys == keys
    assert keys.newest is not None
    assert len(keys.newest) == 32
    assert keys.newest.hex() not in repr(store.view())


def test_of_many_that_make_the_key_at_once_one_does(store: LeaseStore) -> None:
    made: list[bool] = []
    threads = [
        threading.Thread(target=lambda: made.append(store.make_fabric_key())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: len(made) == 8)
    assert made.count(True) == 1
    assert store.view().fabric_keys.previous is None


def test_both_keys_count_after_a_rotation_and_the_third_last_does_not(store: LeaseStore) -> None:
    store.make_fabric_key()
    first = store.view().fabric_keys
    with watched(store) as seen:
        store.rotate_fabric_key()
        second = seen.wait(lambda view: view.fabric_keys.previous is not None).fabric_keys
        assert second.counting == (second.newest, first.newest)
        store.rotate_fabric_key()
        third = seen.wait(lambda view: view.fabric_keys.newest != second.newest).fabric_keys
    assert third.counting == (third.newest, second.newest)
    assert store.view().fabric_keys == third
    assert len({first.newest, second.newest, third.newest}) == 3


def test_rotating_where_there_is_no_key_makes_one(store: LeaseStore) -> None:
    store.rotate_fabric_key()
    assert len(store.view().fabric_keys.counting) == 1


def test_key_before_the_newest_ends_by_itself() -> None:
    """In memory, where a test can pass the time; for etcd see its own tests."""
    now = [0.0]
    store = MemoryLeaseStore(clock=lambda: now[0])
    store.make_fabric_key()
    store.rotate_fabric_key()
    now[0] += KEY_OVERLAP_S - 1
    assert len(store.view().fabric_keys.counting) == 2
    now[0] += 1
    assert len(store.view().fabric_keys.counting) == 1


def test_preferred_subnet_is_taken_if_free(store: LeaseStore) -> None:
    assert store.acquire(claim(1, preferred=FIFTH)).subnet == FIFTH
    assert store.acquire(claim(2, preferred=FIFTH)).subnet != FIFTH


@gives_subnets
def test_preferred_subnet_outside_the_network_is_not_taken(store: LeaseStore) -> None:
    assert store.acquire(claim(1, config=SMALL, preferred=FIFTH)).subnet != FIFTH


def test_flannels_lease_of_this_node_is_taken_over(store: LeaseStore) -> None:
    plant(store, FIFTH, 1)
    lease = store.acquire(claim(1))
    assert lease.subnet == FIFTH
    assert lease.attributes.owner is not None


@gives_subnets
def test_flannels_lease_outside_the_network_is_given_up(store: LeaseStore) -> None:
    plant(store, FIFTH, 1)
    lease = store.acquire(claim(1, config=SMALL))
    assert lease.subnet != FIFTH
    assert set(store.view().leases) == {lease.subnet.key}


@gives_subnets
def test_younger_of_two_overlapping_leases_gives_way(store: LeaseStore) -> None:
    wide = parse_subnet("10.244.4.0/23")
    plant(store, wide, 2, node=True)
    plant(store, FIFTH, 1, node=True)
    lease = store.acquire(claim(1))
    assert not lease.subnet.overlaps(wide)
    assert set(store.view().leases) == {wide.key, lease.subnet.key}


@gives_subnets
def test_oldest_of_several_own_leases_is_kept(store: LeaseStore) -> None:
    plant(store, FIFTH, 1, node=True)
    plant(store, FIRST, 1, node=True)
    assert store.acquire(claim(1)).subnet == FIFTH
    assert set(store.view().leases) == {FIFTH.key}


def test_address_of_another_node_is_refused_with_the_way_out(store: LeaseStore) -> None:
    held = store.acquire(claim(1))
    with pytest.raises(DuplicateNodeError) as caught:
        store.acquire(replace(claim(2), attributes=attributes(1)))
    for word in ("node-2", "node-1", "192.0.2.1", f"overlayctl leases release {held.subnet}"):
        assert word in str(caught.value)


@gives_subnets
def test_full_network_is_refused_with_the_counts(store: LeaseStore) -> None:
    for number in (1, 2):
        store.acquire(claim(number, config=SMALL))
    store.reserve(next(s for s in small_subnets() if is_free(store, s)), "somebody")
    with pytest.raises(NoFreeSubnetError, match="3 subnets is free: 2 leased, 1 reserved"):
        store.acquire(claim(3, config=SMALL))


def small_subnets() -> list[Subnet]:
    return [parse_subnet(f"10.244.{n}.0/24") for n in (1, 2, 3)]


def is_free(store: LeaseStore, subnet: Subnet) -> bool:
    return subnet.key not in store.view().leases


@gives_subnets
def test_dual_stack_claims_pair_the_same_numbers(store: LeaseStore) -> None:
    lease = store.acquire(claim(1, config=DUAL))
    assert lease.subnet.v4 is not None
    assert lease.subnet.v6 is not None
    ranges = claim(1, config=DUAL).config.ranges
    v4, v6 = ranges[Family.IPV4], ranges[Family.IPV6]
    index = (int(lease.subnet.v4.network_address) - int(v4.first)) >> 8
    assert v6.subnet(index) == lease.subnet.v6
    assert store.view().leases == {lease.subnet.key: lease}


def test_renewal_writes_attributes_and_keeps_the_lease(store: LeaseStore) -> None:
    lease = store.acquire(claim(1, ttl_s=30))
    renewed = store.renew(lease, attributes(1, vni=7), 600)
    assert renewed.subnet == lease.subnet
    assert renewed.create_revision == lease.create_revision
    assert renewed.mod_revision > lease.mod_revision
    assert store.view().leases == {renewed.subnet.key: renewed}


@gives_subnets
def test_renewal_starts_the_time_anew(store: LeaseStore) -> None:
    renewed = store.renew(store.acquire(claim(1, ttl_s=30)), attributes(1), 600)
    left = store.time_to_live(renewed)
    assert left is not None
    assert 590 <= left <= 600
    assert store.granted_ttl(renewed) == 600


def test_renewal_of_an_outdated_lease_writes_nothing(store: LeaseStore) -> None:
    lease = store.acquire(claim(1))
    renewed = store.renew(lease, attributes(1, vni=5), 60)
    with pytest.raises(LeaseLostError):
        store.renew(lease, attributes(1, vni=9), 60)
    assert store.view().leases == {renewed.subnet.key: renewed}


def test_renewal_and_release_of_a_lease_that_is_gone(store: LeaseStore) -> None:
    lease = store.acquire(claim(1))
    store.release(lease)
    assert not store.view().leases
    if not isinstance(store, PlantedCluster):
        assert store.time_to_live(lease) == 0
        assert store.times_to_live([lease]) == [0]
        assert store.granted_ttl(lease) == 0
    with pytest.raises(LeaseLostError):
        store.renew(lease, attributes(1), 60)
    with pytest.raises(LeaseLostError):
        store.release(lease)


@gives_subnets
def test_lease_that_runs_out_is_gone(store: LeaseStore) -> None:
    lease = store.acquire(claim(1, ttl_s=1))
    with watched(store) as seen:
        seen.wait_for()
    with pytest.raises(LeaseLostError):
        store.renew(lease, attributes(1), 60)


@gives_subnets
def test_reservation_waits_for_its_node_and_stays_permanent(store: LeaseStore) -> None:
    reserved = store.reserve(FIFTH, "node-1")
    assert reserved.is_permanent
    assert reserved.is_vacant
    assert store.reserve(FIFTH, "node-1") == reserved
    assert store.acquire(claim(2, preferred=FIFTH)).subnet != FIFTH
    lease = store.acquire(claim(1))
    assert lease.subnet == FIFTH
    assert not lease.is_vacant
    assert store.renew(lease, attributes(1), 60).is_permanent
    assert store.time_to_live(lease) is None
    assert store.granted_ttl(lease) is None


@gives_subnets
def test_time_left_of_many_leases_is_each_ones_own(store: LeaseStore) -> None:
    reserved = store.reserve(FIFTH, "node-99")
    held = [store.acquire(claim(number, ttl_s=100 * number)) for number in (1, 2, 3)]
    left = store.times_to_live([held[2], reserved, held[0], held[1]])
    assert left[1] is None
    assert [-(-(seconds or 0) // 100) for seconds in (left[0], left[2], left[3])] == [3, 1, 2]
    assert store.times_to_live([]) == []


@gives_subnets
def test_reserving_a_live_lease_makes_it_permanent(store: LeaseStore) -> None:
    lease = store.acquire(claim(1, ttl_s=2))
    kept = store.reserve(lease.subnet, "")
    assert kept.is_permanent
    assert kept.attributes == lease.attributes
    assert store.view().leases == {kept.subnet.key: kept}
    assert store.acquire(claim(1)).is_permanent


@gives_subnets
@pytest.mark.parametrize(
    ("subnet", "node", "words"),
    [
        pytest.param("10.244.5.0/24", "node-2", "leased to node-1", id="live lease of another"),
        pytest.param("10.244.4.0/23", "node-2", "leased to node-1", id="overlaps a live lease"),
        pytest.param("10.244.6.0/24", "node-2", "reserved for node-9", id="reserved for another"),
        pytest.param("10.244.6.0/24", "", "reserved for node-9", id="vacant, no name"),
    ],
)
def test_taken_subnet_is_not_reserved(
    store: LeaseStore, subnet: str, node: str, words: str
) -> None:
    store.acquire(claim(1, preferred=FIFTH))
    store.reserve(parse_subnet("10.244.6.0/24"), "node-9")
    with pytest.raises(SubnetTakenError, match=words):
        store.reserve(parse_subnet(subnet), node)


@gives_subnets
def test_reserving_nothing_in_particular_is_a_usage_error(store: LeaseStore) -> None:
    store.write_config(CONFIG)
    with pytest.raises(UsageError, match="name the node"):
        store.reserve(FIFTH, "")
    with pytest.raises(UsageError, match=r"outside the network 10\.244\.0\.0/16"):
        store.reserve(parse_subnet("10.0.0.0/24"), "node-1")


def test_config_is_written_and_seen(store: LeaseStore) -> None:
    assert store.view().config is None
    assert store.view().config_error is None
    configure(store, CONFIG)
    assert store.view().config == parse_network_config(CONFIG)


@gives_subnets
def test_config_that_cannot_be_is_not_written(store: LeaseStore) -> None:
    with pytest.raises(ConfigError, match="Netwrok"):
        store.write_config('{"Netwrok": "10.0.0.0/8"}')
    assert store.view().config is None


@gives_subnets
def test_config_that_breaks_leases_needs_force(store: LeaseStore) -> None:
    store.write_config(CONFIG)
    store.acquire(claim(1))
    other = '{"Network": "10.99.0.0/16"}'
    with pytest.raises(ConfigConflictError, match=r"outside the IPv4 network 10\.99.*node-1"):
        store.write_config(other)
    assert store.write_config(other, force=True) == store.view().config


def test_watch_shows_every_change(store: LeaseStore) -> None:
    configure(store, CONFIG)
    first = store.acquire(claim(1))
    with watched(store) as seen:
        seen.wait_for(first.subnet)
        assert seen.last.config is not None
        second = store.acquire(claim(2))
        view = seen.wait_for(first.subnet, second.subnet)
        assert view == store.view()
        renewed = store.renew(first, attributes(1, vni=5), 60)
        seen.wait(lambda view: view.leases[first.subnet.key] == renewed)
        store.release(second)
        seen.wait_for(first.subnet)
    revisions = [view.revision for view in seen.views]
    assert revisions == sorted(revisions)
    assert not seen.troubles


def test_watch_of_an_empty_store_delivers_an_empty_view(store: LeaseStore) -> None:
    with watched(store) as seen:
        view = seen.wait(lambda _: True)
    assert (dict(view.leases), view.config, view.skipped) == ({}, None, ())


def test_views_do_not_change_after_delivery(store: LeaseStore) -> None:
    with watched(store) as seen:
        empty = seen.wait(lambda _: True)
        lease = store.acquire(claim(1))
        seen.wait_for(lease.subnet)
    assert not empty.leases


def test_calls_come_from_several_threads(store: LeaseStore) -> None:
    leases: list[Lease] = []
    threads = [
        threading.Thread(target=lambda n=n: leases.append(store.acquire(claim(n))))
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: len(leases) == 8)
    assert len({lease.subnet for lease in leases}) == 8
