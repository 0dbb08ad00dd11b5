"""The store in memory: its clock, its outages, and what it does not load."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from overlay.model.address import Family
from overlay.model.lease import LeaseAttributes, LeaseView, Owner
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity
from overlay.model.subnet import parse_subnet
from overlay.model.versioned import changed_keys
from overlay.store.base import Claim, LeaseLostError, StoreError, StoreUnavailableError
from overlay.store.memory import MemoryLeaseStore

ATTRIBUTES = LeaseAttributes(
    "vxlan", {Family.IPV4: ip_address("192.0.2.1")}, {}, Owner("id-1", "node-1")
)
CLAIM = Claim(
    NodeIdentity("id-1", "node-1"),
    parse_network_config('{"Network": "10.244.0.0/16"}'),
    ATTRIBUTES,
    ttl_s=60,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_lease_ends_by_the_clock_that_is_passed_in() -> None:
    clock = Clock()
    store = MemoryLeaseStore(clock=clock, choose=lambda _: 4)
    lease = store.acquire(CLAIM)
    assert str(lease.subnet) == "10.244.5.0/24"
    clock.now_s += 59
    assert store.time_to_live(lease) == 1
    lease = store.renew(lease, ATTRIBUTES, 60)
    clock.now_s += 59
    assert store.view().leases
    clock.now_s += 1
    assert not store.view().leases
    assert store.time_to_live(lease) == 0
    with pytest.raises(LeaseLostError):
        store.renew(lease, ATTRIBUTES, 60)


def test_what_others_write_is_in_the_view() -> None:
    store = MemoryLeaseStore()
    subnet = parse_subnet("10.244.9.0/24")
    planted = store.put_lease(subnet, ATTRIBUTES)
    assert planted.is_permanent
    assert store.view().leases == {subnet.key: planted}
    store.delete_lease(subnet)
    store.delete_lease(subnet)
    assert not store.view().leases
    store.put_config("{")
    assert store.view().config is None
    assert "not JSON" in str(store.view().config_error)


def test_views_share_what_stayed() -> None:
    store = MemoryLeaseStore()
    subnets = [parse_subnet(f"10.244.{number}.0/24") for number in range(20)]
    for subnet in subnets:
        store.put_lease(subnet, ATTRIBUTES)
    before = store.view().leases
    assert store.view().leases is before
    store.delete_lease(subnets[3])
    store.put_lease(subnets[7], ATTRIBUTES)
    after = store.view().leases
    assert set(changed_keys(before, after)) == {subnets[3].key, subnets[7].key}
    assert (len(before), len(after)) == (20, 19)


def test_outage_is_raised_by_calls_and_told_once_by_a_watch() -> None:
    store = MemoryLeaseStore()
    views: list[LeaseView] = []
    troubles: list[StoreError | None] = []
    stop = threading.Event()
    thread = threading.Thread(target=store.watch, args=(views.append, troubles.append, stop))
    thread.start()
    try:
        _eventually(lambda: bool(views))
        store.outage = StoreUnavailableError("away")
        with pytest.raises(StoreUnavailableError, match="away"):
            store.acquire(CLAIM)
        _eventually(lambda: len(troubles) == 1)
        store.outage = None
        _eventually(lambda: len(troubles) == 2)
        lease = store.acquire(CLAIM)
        _eventually(lambda: lease.subnet.key in views[-1].leases)
    finally:
        stop.set()
        thread.join(10)
    assert troubles[-1] is None


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("module", ["base", "memory", "etcd_config"])
def test_grpc_is_loaded_only_by_those_who_need_it(module: str) -> None:
    program = f"import sys, overlay.store.{module}; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
