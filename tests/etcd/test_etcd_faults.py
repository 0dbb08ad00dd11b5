"""What goes wrong with an etcd, and what a fabric notices of it."""

import logging
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from overlay.lab.etcd import EmbeddedEtcd, free_port
from overlay.model.lease import format_attributes
from overlay.model.subnet import Subnet, parse_subnet
from overlay.store.base import LeaseStore, StoreUnavailableError
from overlay.store.etcd import EtcdLeaseStore
from overlay.store.etcd_config import EtcdConfig, parse_endpoint
from tests.etcd.proxy import SilentProxy
from tests.etcd.support import CONFIG, attributes, claim, eventually, raw_client, watched

pytestmark = pytest.mark.etcd

PREFIX = "/coreos.com/network"


def subnet(number: int) -> Subnet:
    return parse_subnet(f"10.244.{number}.0/24")


def key(number: int, prefix: str = PREFIX) -> str:
    return f"{prefix}/subnets/{subnet(number).key}"


def value(number: int) -> bytes:
    return format_attributes(attributes(number, node=False))


@contextmanager
def opened(*endpoints: str, prefix: str = PREFIX, timeout_s: float = 5.0) -> Iterator[LeaseStore]:
    store = EtcdLeaseStore(EtcdConfig(endpoints, prefix, timeout_s=timeout_s))
    try:
        yield store
    finally:
        store.close()


@contextmanager
def raw_of(etcd: EmbeddedEtcd) -> Iterator[Any]:
    client = raw_client(etcd.endpoint)
    try:
        yield client
    finally:
        client.close()


def test_killed_etcd_is_back_within_a_second_and_nothing_is_missed(
    own_etcd: EmbeddedEtcd,
) -> None:
    with opened(own_etcd.endpoint) as store, watched(store) as seen:
        first = store.acquire(claim(1))
        seen.wait_for(first.subnet)
        own_etcd.kill()
        eventually(lambda: len(seen.troubles) == 1)
        assert isinstance(seen.troubles[0], StoreUnavailableError)
        assert own_etcd.endpoint in str(seen.troubles[0])
        before = resource.getrusage(resource.RUSAGE_SELF)
        threading.Event().wait(3)  # what is measured is a time of doing nothing
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert set(seen.last.leases) == {first.subnet.key}
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert used_s < 0.3
        own_etcd.start()
        back_at = time.monotonic()
        eventually(lambda: seen.troubles[-1] is None)
        assert time.monotonic() - back_at < 1.5
        with raw_of(own_etcd) as raw:
            raw.put(key(9), value(9))
        seen.wait_for(first.subnet, subnet(9))
        assert len(seen.troubles) == 2


def test_changes_behind_a_compaction_are_seen_after_a_break(own_etcd: EmbeddedEtcd) -> None:
    port = parse_endpoint(own_etcd.endpoint).port
    with SilentProxy(port) as proxy, raw_of(own_etcd) as raw:
        raw.put(key(1), value(1))
        raw.put(key(2), value(2))
        with opened(f"http://127.0.0.1:{proxy.port}") as store, watched(store) as seen:
            seen.wait_for(subnet(1), subnet(2))
            raw.put(key(4), value(4))
            seen.wait_for(subnet(1), subnet(2), subnet(4))  # the watch itself runs by now
            proxy.swallow()
            raw.delete(key(1))
            raw.delete(key(4))
            raw.put(key(2), value(22))
            raw.put(key(3), value(3))
            _, meta = raw.get(key(3))
            raw.compact(meta.mod_revision)
            # Half open: keepalive notices after 8 s, a read only after 15 s of silence.
            view = seen.wait_for(subnet(2), subnet(3), timeout_s=12)
            assert view.leases[subnet(2).key].attributes.public == attributes(22).public
            eventually(lambda: seen.troubles[-1] is None)


def test_call_on_a_half_open_connection_ends_and_the_next_one_works(
    own_etcd: EmbeddedEtcd,
) -> None:
    port = parse_endpoint(own_etcd.endpoint).port
    with (
        SilentProxy(port) as proxy,
        opened(f"http://127.0.0.1:{proxy.port}", timeout_s=1.0) as store,
    ):
        store.view()
        proxy.swallow()
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            store.view()
        assert time.monotonic() - started < 3
        store.view()


@pytest.mark.parametrize("delay_s", [0.003, 0.3], ids=["3 ms", "300 ms"])
def test_store_that_is_far_away_is_slow_and_nothing_else(
    own_etcd: EmbeddedEtcd, delay_s: float
) -> None:
    port = parse_endpoint(own_etcd.endpoint).port
    with (
        SilentProxy(port, delay_s) as proxy,
        raw_of(own_etcd) as raw,
        opened(f"http://127.0.0.1:{proxy.port}") as store,
        watched(store) as seen,
    ):
        lease = store.acquire(claim(1, ttl_s=10))
        renewed = store.renew(lease, attributes(1), 10)
        seen.wait(lambda view: view.leases == {lease.subnet.key: renewed})
        raw.put(key(9), value(9))
        seen.wait_for(lease.subnet, subnet(9))
        store.release(renewed)
        seen.wait_for(subnet(9))
        assert not seen.troubles
        assert proxy.accepted == 2  # one for calls, one for the watch


def test_store_that_swallows_all_is_named_and_costs_nothing_meanwhile(
    own_etcd: EmbeddedEtcd,
) -> None:
    """A black hole from the first packet on: connections are taken and never answered."""
    with SilentProxy(parse_endpoint(own_etcd.endpoint).port) as proxy:
        proxy.is_black_hole = True
        with opened(f"http://127.0.0.1:{proxy.port}", timeout_s=1.0) as store:
            with watched(store) as seen:
                eventually(lambda: bool(seen.troubles))
                assert isinstance(seen.troubles[0], StoreUnavailableError)
                proxy.is_black_hole = False
                view = seen.wait(lambda _: True, timeout_s=15)
            assert not view.leases


def test_idle_watch_keeps_its_connection(own_etcd: EmbeddedEtcd) -> None:
    """A watch that pings too often is thrown out by etcd after nine seconds.

    It is the only connection by then.
    """
    port = parse_endpoint(own_etcd.endpoint).port
    with (
        SilentProxy(port) as proxy,
        opened(f"http://127.0.0.1:{proxy.port}") as store,
        watched(store) as seen,
    ):
        seen.wait(lambda _: True)
        threading.Event().wait(12)  # idleness itself is what is tested
        assert proxy.accepted == 2
        eventually(lambda: proxy.ended == 1)
        assert not seen.troubles


def test_store_put_back_to_an_older_state_is_listed_again(tmp_path: Path) -> None:
    old = EmbeddedEtcd(tmp_path / "old")
    new = EmbeddedEtcd(tmp_path / "new", client_url=old.endpoint)
    with opened(old.endpoint) as store:
        with old:
            with raw_of(old) as raw:
                for number in range(1, 6):
                    raw.put(key(number), value(number))
            stop_watch = watched(store)
            seen = stop_watch.__enter__()
            seen.wait_for(*map(subnet, range(1, 6)))
        try:
            with new, raw_of(new) as raw:
                raw.put(key(7), value(7))
                view = seen.wait_for(subnet(7))
                assert view.revision < seen.views[0].revision
        finally:
            stop_watch.__exit__(None, None, None)


def test_what_cannot_be_read_is_skipped_and_changes_nothing_else(
    etcd_store: EtcdLeaseStore, raw: Any, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw.put(f"{prefix}/config", CONFIG)
    for number in (1, 2):
        raw.put(key(number, prefix), value(number))
    bad = {
        "nonsense": b"{}",
        "10.244.7.9-24": value(7),  # host bits
        "10.244.8.0-24": b"not json",
        "10.244.9.0-24&junk": value(9),
        "10.244.10.0-24&fd00:0::-64": value(10),  # no agent spells it so
    }
    with caplog.at_level(logging.WARNING), watched(etcd_store) as seen:
        seen.wait_for(subnet(1), subnet(2))
        for name, content in bad.items():
            raw.put(f"{prefix}/subnets/{name}", content)
        raw.put(f"{prefix}/other", b"not ours")
        view = seen.wait(lambda view: len(view.skipped) == len(bad))
        assert set(view.leases) == {subnet(1).key, subnet(2).key}
        assert {skipped.key for skipped in view.skipped} == set(bad)
        assert etcd_store.view().skipped
        etcd_store.view()
    for name in bad:
        lines = [r for r in caplog.records if f"{prefix}/subnets/{name}'" in r.getMessage()]
        assert len(lines) == 1
    config = '{"Network": "10.244.8.0/22", "SubnetLen": 24}'
    assert etcd_store.acquire(claim(50, config=config)).subnet == subnet(11)


def test_challenges_end_by_themselves_and_garbage_among_them_asks_nobody(
    etcd_store: EtcdLeaseStore, raw: Any, prefix: str
) -> None:
    asker = format_attributes(attributes(1))
    garbage = {
        "x": b"",
        "": asker,
        "id-2": asker,  # another's name in it
        "id-3": b"\xff{",
        "id-4": b'{"BackendType":"vxlan","PublicIP":"192.0.2.1"}',
        "id-5/deep": format_attributes(attributes(5)),
    }
    with watched(etcd_store) as seen:
        seen.wait(lambda _: True)
        for name, content in garbage.items():
            raw.put(f"{prefix}/challenges/{name}", content)
        for number in range(600):  # more than one page
            raw.put(f"{prefix}/challenges/junk{number}", b"junk")
        raw.put(key(1, prefix), value(1))
        seen.wait_for(subnet(1))
        etcd_store.challenge(attributes(1))
        view = seen.wait(lambda view: "id-1" in view.challenges)
        assert set(view.challenges) == {"id-1"}
        assert set(etcd_store.view().challenges) == {"id-1"}
        assert not view.skipped
        _, meta = raw.get(f"{prefix}/challenges/id-1")
        assert 0 < raw.get_lease_info(meta.lease_id).grantedTTL <= 10
        raw.delete(f"{prefix}/challenges/id-1")
        eventually(lambda: not etcd_store.view().challenges)
        raw.put(key(2, prefix), value(2))
        assert not seen.wait_for(subnet(1), subnet(2)).challenges


def test_key_before_the_newest_is_bound_to_an_etcd_lease_and_garbage_counts_for_nothing(
    etcd_store: EtcdLeaseStore, raw: Any, prefix: str
) -> None:
    etcd_store.make_fabric_key()
    etcd_store.rotate_fabric_key()
    _, meta = raw.get(f"{prefix}/fabric-key-previous")
    assert 0 < raw.get_lease_info(meta.lease_id).grantedTTL <= 60
    with watched(etcd_store) as seen:
        seen.wait(lambda view: len(view.fabric_keys.counting) == 2)
        raw.revoke_lease(meta.lease_id)
        seen.wait(lambda view: len(view.fabric_keys.counting) == 1)
        raw.put(f"{prefix}/fabric-key", b"sesame")
        keys = seen.wait(lambda view: not view.fabric_keys.counting).fabric_keys
        assert keys.error is not None
        assert "overlayctl network rotate-key" in keys.error
        assert "sesame" not in repr(etcd_store.view())
        assert not etcd_store.make_fabric_key()
        etcd_store.rotate_fabric_key()
        seen.wait(lambda view: len(view.fabric_keys.counting) == 1)
    assert etcd_store.view().fabric_keys.error is None
    assert raw.get(f"{prefix}/fabric-key-previous")[0] is None


def test_malformed_value_never_removes_a_working_peer(
    etcd_store: EtcdLeaseStore, raw: Any, prefix: str
) -> None:
    raw.put(key(1, prefix), value(1))
    with watched(etcd_store) as seen:
        seen.wait_for(subnet(1))
        raw.put(key(1, prefix), b"garbage")
        view = seen.wait(lambda view: bool(view.skipped))
        assert view.leases[subnet(1).key].attributes == attributes(1, node=False)
        raw.put(key(1, prefix), value(2))
        view = seen.wait(lambda view: not view.skipped)
        assert view.leases[subnet(1).key].attributes == attributes(2, node=False)
        raw.put(key(1, prefix), b"garbage")
        seen.wait(lambda view: bool(view.skipped))
        raw.delete(key(1, prefix))
        view = seen.wait(lambda view: not view.leases)
        assert not view.skipped


def test_own_lease_with_a_spoiled_value_is_renewed(
    etcd_store: EtcdLeaseStore, raw: Any, prefix: str
) -> None:
    lease = etcd_store.acquire(claim(1))
    raw.put(f"{prefix}/subnets/{lease.subnet.key}", b"garbage")
    renewed = etcd_store.renew(lease, attributes(1), 60)
    assert etcd_store.view().leases == {lease.subnet.key: renewed}
    assert etcd_store.time_to_live(renewed) in range(50, 61)


def test_config_that_cannot_be_read_is_told_and_leases_stay(
    etcd_store: EtcdLeaseStore, raw: Any, prefix: str
) -> None:
    lease = etcd_store.acquire(claim(1))
    raw.put(f"{prefix}/config", b"{")
    view = etcd_store.view()
    assert view.config is None
    assert view.config_error is not None
    assert "not JSON" in view.config_error
    assert set(view.leases) == {lease.subnet.key}


def test_old_etcd_lease_does_not_take_the_key_along(etcd_store: EtcdLeaseStore, raw: Any) -> None:
    lease = etcd_store.acquire(claim(1, ttl_s=5))
    renewed = etcd_store.renew(lease, attributes(1), 60)
    assert renewed.lease_id != lease.lease_id
    assert raw.get_lease_info(lease.lease_id).TTL == -1
    assert etcd_store.view().leases == {lease.subnet.key: renewed}


def test_ipv4_alone_and_dual_stack_exclude_one_another(
    etcd_store: EtcdLeaseStore, raw: Any, prefix: str
) -> None:
    writer = etcd_store._writer
    both = parse_subnet("10.244.3.0/24,fd00:1:0:3::/64")
    assert writer.create(subnet(3), attributes(1), writer.grant(60)) is not None
    assert writer.create(both, attributes(2), writer.grant(60)) is None
    assert writer.create(subnet(4), attributes(3), writer.grant(60)) is not None
    v6 = [parse_subnet(f"fd00:1:0:{n}::/64") for n in (1, 2)]
    assert all(writer.create(each, attributes(4), writer.grant(60)) for each in v6)


def test_one_of_several_endpoints_may_be_dead(etcd: EmbeddedEtcd, prefix: str) -> None:
    dead = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with opened(*dead, etcd.endpoint, prefix=prefix) as store, watched(store) as seen:
        started = time.monotonic()
        lease = store.acquire(claim(1))
        assert time.monotonic() - started < 3
        seen.wait_for(lease.subnet)
        store.release(lease)
        seen.wait_for()


def test_unreachable_endpoints_are_named_soon() -> None:
    dead = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    started = time.monotonic()
    with opened(*dead) as store, pytest.raises(StoreUnavailableError) as caught:
        store.view()
    assert all(endpoint in str(caught.value) for endpoint in dead)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("count", [25_000])
def test_many_leases_are_listed_in_pages(
    etcd_store: EtcdLeaseStore, raw: Any, prefix: str, count: int
) -> None:
    names = [f"10.{100 + n // 256}.{n % 256}.0-24" for n in range(count)]
    for start in range(0, count, 128):  # etcd's limit of operations in a transaction
        raw.transaction(
            [],
            [raw.transactions.put(f"{prefix}/subnets/{n}", value(2)) for n in names[start:][:128]],
            [],
        )
    started = time.monotonic()
    view = etcd_store.view()
    assert set(view.leases) == set(names)
    print(f"{count} leases listed in {time.monotonic() - started:.2f} s")
    started = time.monotonic()
    lease = etcd_store.acquire(claim(1, config='{"Network": "10.200.0.0/16"}'))
    assert lease.subnet.key not in names
    print(f"claimed beside them in {time.monotonic() - started:.2f} s")
    assert len(etcd_store.view().leases) == count + 1
    raw.delete_prefix(prefix)
