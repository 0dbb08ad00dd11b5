"""Claims by number, watches that remember, polling with a deadline, a bare etcd client."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import etcd3

from overlay.model.address import family_of
from overlay.model.lease import LeaseAttributes, LeaseView, Owner
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity
from overlay.model.subnet import Subnet
from overlay.store.base import Claim, LeaseStore, StoreError
from overlay.store.etcd_config import parse_endpoint

CONFIG = '{"Network": "10.244.0.0/16"}'


def attributes(number: int, *, node: bool = True, vni: int = 1) -> LeaseAttributes:
    address = ip_address(f"192.0.2.{number}")
    return LeaseAttributes(
        "vxlan",
        {family_of(address): address},
        {family_of(address): {"VNI": vni, "VtepMAC": f"02:00:00:00:00:{number:02x}"}},
        Owner(f"id-{number}", f"node-{number}") if node else None,
    )


def claim(
    number: int, *, config: str = CONFIG, ttl_s: int = 60, preferred: Subnet | None = None
) -> Claim:
    return Claim(
        NodeIdentity(f"id-{number}", f"node-{number}"),
        parse_network_config(config),
        attributes(number),
        ttl_s,
        preferred,
    )


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


@dataclass
class Watching:
    """What a watch said, for a test to look at."""

    store: LeaseStore
    views: list[LeaseView] = field(default_factory=list)
    troubles: list[StoreError | None] = field(default_factory=list)

    @property
    def last(self) -> LeaseView:
        return self.views[-1]

    def wait(self, condition: Callable[[LeaseView], bool], timeout_s: float = 10.0) -> LeaseView:
        eventually(lambda: bool(self.views) and condition(self.last), timeout_s)
        return self.last

    def wait_for(self, *subnets: Subnet, timeout_s: float = 10.0) -> LeaseView:
        keys = {subnet.key for subnet in subnets}
        return self.wait(lambda view: set(view.leases) == keys, timeout_s)


def raw_client(endpoint: str) -> Any:
    address = parse_endpoint(endpoint)
    return etcd3.client(address.host, address.port, timeout=10)


@contextmanager
def watched(store: LeaseStore) -> Iterator[Watching]:
    """Watch in a thread that ends with the block."""
    seen, stop = Watching(store), threading.Event()
    thread = threading.Thread(
        target=store.watch, args=(seen.views.append, seen.troubles.append, stop)
    )
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
