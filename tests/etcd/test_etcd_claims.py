"""Claims that cross others, and transactions whose answer is lost."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overlay.lab.etcd import EmbeddedEtcd
from overlay.model.lease import Lease
from overlay.model.subnet import Subnet, parse_subnet
from overlay.store.base import StoreUnavailableError
from overlay.store.etcd import EtcdLeaseStore
from overlay.store.etcd_config import EtcdConfig
from overlay.store.etcd_errors import OutcomeUnknownError
from tests.etcd.support import CONFIG, attributes, claim

pytestmark = pytest.mark.etcd

FIFTH = parse_subnet("10.244.5.0/24")


class Granted:
    """Remembers the etcd leases that a store was granted."""

    def __init__(self, store: EtcdLeaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._grant = store._writer.grant
        self._ids: list[int] = []
        monkeypatch.setattr(store._writer, "grant", self)

    def __call__(self, ttl_s: int) -> int:
        self._ids.append(self._grant(ttl_s))
        return self._ids[-1]

    def alive(self, raw: Any) -> list[int]:
        return [each for each in self._ids if raw.get_lease_info(each).TTL > 0]


class Crossing:
    """Chooses subnets by a list; before each choice somebody else may be faster."""

    def __init__(self) -> None:
        self.choices: list[int] = []
        self.before: list[Callable[[], object]] = []

    def __call__(self, _: int) -> int:
        if self.before:
            self.before.pop(0)()
        return self.choices.pop(0)


@pytest.fixture
def crossing() -> Crossing:
    return Crossing()


@pytest.fixture
def crossed(etcd: EmbeddedEtcd, prefix: str, crossing: Crossing) -> Iterator[EtcdLeaseStore]:
    store = EtcdLeaseStore(EtcdConfig((etcd.endpoint,), prefix), choose=crossing)
    yield store
    store.close()


def plant(store: EtcdLeaseStore, subnet: Subnet, number: int) -> None:
    assert store._writer.create(subnet, attributes(number), store._writer.grant(60))


@pytest.mark.parametrize("taken", ["10.244.5.0/24", "10.244.4.0/22", "10.244.5.128/25"])
def test_subnet_that_is_taken_meanwhile_is_left_to_the_other(
    crossed: EtcdLeaseStore, crossing: Crossing, taken: str
) -> None:
    other = parse_subnet(taken)
    crossing.choices = [4, 20]
    crossing.before = [lambda: plant(crossed, other, 2)]
    lease = crossed.acquire(claim(1))
    assert not lease.subnet.overlaps(other)
    assert set(crossed.view().leases) == {lease.subnet.key, other.key}


def test_own_lease_that_changes_meanwhile_is_read_again(
    etcd_store: EtcdLeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = etcd_store.acquire(claim(1))
    grant, changes = etcd_store._writer.grant, [1]

    def change_then_grant(ttl_s: int) -> int:
        if changes:
            changes.pop()
            etcd_store.reserve(first.subnet, "")
        return grant(ttl_s)

    monkeypatch.setattr(etcd_store._writer, "grant", change_then_grant)
    again = etcd_store.acquire(claim(1))
    assert again.subnet == first.subnet
    assert again.is_permanent


def test_old_lease_that_is_made_permanent_while_it_is_left_does_not_stay(
    etcd_store: EtcdLeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stand beside the node's lease for ever, and be believed: it is the older one."""
    old = etcd_store.acquire(claim(1))
    delete, changes = etcd_store._writer.delete, [1]

    def change_then_delete(lease: Lease) -> bool:
        if changes:
            changes.pop()
            etcd_store.reserve(old.subnet, "")
        return delete(lease)

    monkeypatch.setattr(etcd_store._writer, "delete", change_then_delete)
    new = etcd_store.acquire(claim(1, config='{"Network": "10.245.0.0/16"}'))
    assert not changes
    assert etcd_store.view().leases == {new.subnet.key: new}


@pytest.fixture(params=[True, False], ids=["was done", "was not done"])
def losing(
    request: pytest.FixtureRequest, etcd_store: EtcdLeaseStore, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Return what makes the next transaction's answer get lost."""
    write = etcd_store._connection.write
    losses: list[int] = []

    def lossy(action: Callable[[Any], Any]) -> Any:
        if not losses:
            return write(action)
        losses.pop()
        if request.param:
            write(action)
        msg = "the answer is lost"
        raise OutcomeUnknownError(msg)

    monkeypatch.setattr(etcd_store._connection, "write", lossy)
    return lambda: losses.append(1)


def test_lost_answer_to_a_claim_leaves_one_lease(
    etcd_store: EtcdLeaseStore,
    raw: Any,
    losing: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    granted = Granted(etcd_store, monkeypatch)
    losing()
    lease = etcd_store.acquire(claim(1))
    assert etcd_store.view().leases == {lease.subnet.key: lease}
    assert granted.alive(raw) == [lease.lease_id]


def test_lost_answer_to_a_renewal_is_cleared_up(
    etcd_store: EtcdLeaseStore, losing: Callable[[], None]
) -> None:
    lease = etcd_store.acquire(claim(1))
    losing()
    try:
        lease = etcd_store.renew(lease, attributes(1, vni=3), 60)
    except StoreUnavailableError:
        lease = etcd_store.renew(lease, attributes(1, vni=3), 60)
    assert etcd_store.view().leases == {lease.subnet.key: lease}


def test_lost_answer_to_a_release_is_cleared_up(
    etcd_store: EtcdLeaseStore, losing: Callable[[], None]
) -> None:
    lease = etcd_store.acquire(claim(1))
    losing()
    try:
        etcd_store.release(lease)
    except StoreUnavailableError:
        etcd_store.release(lease)
    assert not etcd_store.view().leases


def test_lost_answer_to_a_config_is_cleared_up(
    etcd_store: EtcdLeaseStore, losing: Callable[[], None]
) -> None:
    losing()
    try:
        written = etcd_store.write_config(CONFIG)
    except StoreUnavailableError:
        written = etcd_store.write_config(CONFIG)
    assert etcd_store.view().config == written


def test_no_etcd_lease_is_left_over(
    crossed: EtcdLeaseStore, crossing: Crossing, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = Granted(crossed, monkeypatch)
    crossing.choices = [4, 4, 5]
    crossing.before = [lambda: plant(crossed, FIFTH, 2)]
    lease = crossed.acquire(claim(1))
    lease = crossed.renew(lease, attributes(1), 60)
    crossed.release(lease)
    crossed.release(crossed.view().leases[FIFTH.key])
    assert not granted.alive(raw)
