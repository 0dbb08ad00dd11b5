"""Fifty nodes at once on a network of exactly fifty subnets."""

import threading
from ipaddress import ip_address

import pytest

from overlay.lab.etcd import EmbeddedEtcd
from overlay.model.address import Family
from overlay.model.errors import OverlayError
from overlay.model.lease import Lease, LeaseAttributes, Owner
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity
from overlay.store.base import Claim, LeaseStore
from overlay.store.etcd import EtcdLeaseStore
from overlay.store.etcd_config import EtcdConfig
from overlay.store.memory import MemoryLeaseStore

NODES = 50
V4 = '"Network": "10.244.0.0/16", "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.50.0"'
V6 = (
    '"EnableIPv6": true, "IPv6Network": "fd00:1::/48", "IPv6SubnetLen": 64,'
    ' "IPv6SubnetMin": "fd00:1:0:1::", "IPv6SubnetMax": "fd00:1:0:32::"'
)
CONFIGS = [pytest.param(f"{{{V4}}}", 20, id="ipv4"), pytest.param(f"{{{V4}, {V6}}}", 5, id="dual")]


def claim(number: int, config: str) -> Claim:
    address = ip_address(f"192.0.2.{number}")
    owner = Owner(f"id-{number}", f"node-{number}")
    public = LeaseAttributes("vxlan", {Family.IPV4: address}, {}, owner)
    node = NodeIdentity(owner.node_id, owner.node_name)
    return Claim(node, parse_network_config(config), public, 600)


def race(stores: list[LeaseStore], config: str) -> list[Lease]:
    """Let every store claim at the same time; raise what any of them raises."""
    start = threading.Barrier(len(stores))
    leases: list[Lease] = []
    errors: list[OverlayError] = []

    def run(number: int, store: LeaseStore) -> None:
        mine = claim(number, config)
        start.wait()
        try:
            leases.append(store.acquire(mine))
        except OverlayError as exc:
            errors.append(exc)

    threads = [
        threading.Thread(target=run, args=(n, store)) for n, store in enumerate(stores, start=1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return leases


@pytest.mark.etcd
@pytest.mark.parametrize(("config", "rounds"), CONFIGS)
def test_everybody_gets_a_subnet_of_its_own_in_etcd(
    etcd: EmbeddedEtcd, prefix: str, config: str, rounds: int
) -> None:
    stores: list[LeaseStore] = [
        EtcdLeaseStore(EtcdConfig((etcd.endpoint,), prefix)) for _ in range(NODES)
    ]
    try:
        for _ in range(rounds):
            leases = race(stores, config)
            held = stores[0].view().leases
            assert {lease.subnet.key: lease for lease in leases} == held
            assert len(held) == NODES
            for store, lease in zip(stores * 2, leases, strict=False):
                store.release(lease)
            assert not stores[0].view().leases
    finally:
        for store in stores:
            store.close()


@pytest.mark.parametrize(("config", "rounds"), CONFIGS)
def test_everybody_gets_a_subnet_of_its_own_in_memory(config: str, rounds: int) -> None:
    for _ in range(rounds):
        store = MemoryLeaseStore()
        leases = race([store] * NODES, config)
        assert {lease.subnet.key: lease for lease in leases} == store.view().leases
