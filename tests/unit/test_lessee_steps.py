"""The lessee step by step, in time of our own: what it waits for, and what it keeps meanwhile."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from overlay.agent.flags import parse_flags
from overlay.agent.host import Host
from overlay.agent.lessee import Lessee
from overlay.agent.status import (
    CLAIMING,
    LAPSED,
    PROGRAMMING,
    RUNNING,
    Bell,
    Mailbox,
    Snapshot,
    Status,
)
from overlay.kernel.base import DeviceConflictError
from overlay.model.address import Family
from overlay.model.lease import Lease, LeaseAttributes, LeaseView, Owner
from overlay.model.node import Underlay
from overlay.plan.backend import UnderlayError
from overlay.plan.planner import Site
from overlay.store.base import StoreError, StoreUnavailableError
from overlay.store.memory import MemoryLeaseStore
from tests.unit.worlds import V4, lease, underlay

OTHER_VNI = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":2}}'
TTL_S, MARGIN_S = 3600, 600
_NINE = lease(9, families=(Family.IPV4,))
ELSEWHERE = replace(_NINE, attributes=replace(_NINE.attributes, owner=Owner("n1", "n1")))


class Machine:
    """Node ``n1`` at 192.0.2.1; ``run`` does one thing each time its lessee waits."""

    def __init__(self, place: Path) -> None:
        self.now = 1000.0
        self.host_number = 1
        self.fault: Exception | None = None  # of the underlay or of the devices
        self.waits: list[float] = []
        self.store = MemoryLeaseStore(clock=lambda: self.now)
        self.store.put_config(V4)
        self.status = Status()
        words = [
            "--node-name=n1",
            f"--state-dir={place}",
            f"--subnet-lease-ttl={TTL_S}s",
            f"--subnet-lease-renew-margin={MARGIN_S}s",
        ]
        flags = parse_flags(words, {})
        bell = _Script(self)
        self.sites: Mailbox[Site] = Mailbox(Event())
        self.lessee = Lessee(
            flags, self.store, self.status, self.sites, self._check, lambda: self.now,
            Host(bell=lambda: bell, find_underlay=self._find),
        )  # fmt: skip
        self.todo: list[Callable[[], object]] = []
        self.stop = Event()
        self.stale: LeaseView | None = None  # what the watch shows, where it is late

    def run(self, *todo: Callable[[], object]) -> Snapshot:
        self.todo = list(todo)
        self.stop.clear()
        self.look()
        self.lessee.run(self.stop, self.stop.set)
        return self.status.get()

    def look(self) -> None:
        self.lessee.views.put(self.stale or self.store.view())

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def own(self) -> Lease:
        site = self.sites.get()
        assert site is not None
        return site.own

    def _find(self, _flags: object, _families: object) -> Underlay:
        if isinstance(self.fault, UnderlayError):
            raise self.fault
        return underlay(self.host_number)

    def _check(self, _backend: object, _underlay: object) -> None:
        if isinstance(self.fault, DeviceConflictError):
            raise self.fault


class _Script(Event, Bell):
    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        machine = self._machine
        machine.waits.append(timeout)
        if machine.todo:
            machine.todo.pop(0)()
            machine.look()
        else:
            machine.stop.set()
        return True


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def moved(own: LeaseAttributes, number: int) -> LeaseAttributes:
    """Return what the same node would write from another address."""
    return replace(own, public={family: underlay(number).public[family] for family in own.public})


def test_question_to_a_twin_ends_with_the_config(machine: Machine) -> None:
    store = machine.store
    store.put_lease(ELSEWHERE.subnet, ELSEWHERE.attributes)
    machine.run(lambda: None, lambda: store.put_config(None), lambda: machine.wait(10))
    assert machine.waits[-1] > 1, "it spins: the answer is waited for, and nothing is claimed"
    store.put_config(V4)
    machine.run(lambda: machine.wait(10))
    assert machine.own().subnet == ELSEWHERE.subnet


@pytest.mark.parametrize(
    "fault",
    [UnderlayError("eth0 is down"), DeviceConflictError("overlay.2 is somebody's bridge")],
    ids=["underlay", "device"],
)
def test_lease_is_renewed_although_a_new_config_cannot_be_followed(
    machine: Machine, fault: Exception
) -> None:
    machine.run()
    own = machine.own()
    machine.fault = fault
    machine.store.put_config(OTHER_VNI)
    machine.run(*[lambda: machine.wait(TTL_S / 4)] * 6)
    kept = machine.store.view().leases[own.subnet.key]
    assert kept.mod_revision > own.mod_revision
    assert kept.attributes == own.attributes, "it says what the kernel still does"
    assert machine.status.get().lessee_error == str(fault)
    machine.fault = None
    machine.run()
    assert machine.own().attributes != own.attributes, "the new config is followed now"
    assert machine.status.get().lessee_error is None


def test_lost_lease_is_noticed_although_a_new_config_cannot_be_followed(machine: Machine) -> None:
    machine.run()
    own = machine.own()
    machine.fault = UnderlayError("eth0 is down")
    machine.store.put_config(OTHER_VNI)
    machine.store.put_lease(own.subnet, _NINE.attributes)
    machine.run()
    assert machine.own().subnet != own.subnet


def test_renewal_does_not_wait_for_the_retry_of_something_else(machine: Machine) -> None:
    machine.run()
    due_at = machine.now + TTL_S - MARGIN_S
    machine.fault = UnderlayError("eth0 is down")
    machine.store.put_config(OTHER_VNI)
    woken_at: list[float] = []

    def wait() -> None:
        machine.wait(machine.waits[-1])
        woken_at.append(machine.now)

    machine.run(*[wait] * 120)
    assert due_at in woken_at
    assert min(machine.waits[1:]) > 0, "it spins"


def test_no_pod_gets_an_address_of_a_subnet_that_was_lost(machine: Machine) -> None:
    """Not even while the kernel, which is slow or fails, is still that of the lost one."""
    machine.run()
    own = machine.own()
    machine.status.update(site=machine.sites.get(), mtu=1450, phase=RUNNING)
    assert machine.status.get().subnet_at(machine.now) == own.subnet
    machine.store.put_lease(own.subnet, _NINE.attributes)
    machine.run()
    machine.status.update(phase=RUNNING)  # by a pass that began before
    assert machine.status.get().subnet_at(machine.now) is None
    machine.status.update(site=machine.sites.get())
    assert machine.status.get().subnet_at(machine.now) == machine.own().subnet != own.subnet


class SlowStore(MemoryLeaseStore):
    """Answers a renewal ``answer_s`` later, or says why not."""

    answer_s = 0.0
    refusal: StoreError | None = None
    machine: Machine

    def renew(self, lease: Lease, attributes: LeaseAttributes, ttl_s: int) -> Lease:
        if self.refusal is not None:
            raise self.refusal
        renewed = super().renew(lease, attributes, ttl_s)
        self.machine.now += self.answer_s
        return renewed


@pytest.fixture
def slow(machine: Machine) -> SlowStore:
    store = SlowStore(clock=lambda: machine.now)
    store.put_config(V4)
    store.machine = machine
    machine.store = machine.lessee._store = store
    return store


def test_no_pod_gets_an_address_once_the_lease_may_have_run_out(
    machine: Machine, slow: SlowStore
) -> None:
    """A node that is cut off is told nothing; its own clock says enough."""
    machine.run()
    own, status = machine.own(), machine.status
    status.update(site=machine.sites.get(), mtu=1450, phase=RUNNING)
    claimed_at, machine.stale = machine.now, slow.view()
    slow.refusal = StoreUnavailableError("no etcd answers")
    status.update(is_store_connected=False)
    for _ in range(200):
        machine.run(lambda: machine.wait(min(30.0, machine.waits[-1])))
        is_over = machine.now >= claimed_at + TTL_S
        assert status.get().subnet_at(claimed_at + TTL_S) is None, "however late the thread is"
        assert not is_over or status.get().phase == LAPSED
        assert machine.waits[-1] > 0, "it spins"
    assert machine.now > claimed_at + TTL_S
    snapshot = status.get()
    assert not snapshot.is_ready
    assert LAPSED in snapshot.reasons
    assert snapshot.site is not None, "forwarding stays"
    assert snapshot.site.own.subnet == own.subnet
    slow.refusal = machine.stale = None
    slow.put_lease(own.subnet, own.attributes, TTL_S)  # etcd was late to end it
    machine.lessee.store_is_back()
    machine.run()
    assert status.get().phase == PROGRAMMING
    status.programmed()
    assert status.get().subnet_at(machine.now) == own.subnet


def test_time_of_a_lease_counts_from_before_the_question(machine: Machine, slow: SlowStore) -> None:
    machine.run()
    machine.wait(TTL_S - MARGIN_S)
    asked_at, slow.answer_s = machine.now, 30.0
    machine.run()
    assert asked_at < machine.now
    assert machine.status.get().lease_ends <= asked_at + TTL_S


def test_permanent_lease_has_no_end(machine: Machine) -> None:
    machine.run()
    own = machine.own()
    assert machine.status.get().lease_ends < machine.now + TTL_S
    machine.store.put_lease(own.subnet, own.attributes)
    machine.run()
    assert machine.status.get().lease_ends == float("inf")
    machine.store.put_lease(own.subnet, own.attributes, 60)  # it was put back, say
    machine.run()
    assert machine.status.get().lease_ends > machine.now + TTL_S / 2, "renewed at once"


@pytest.mark.parametrize("is_connected", [True, False])
def test_what_fails_is_tried_again_soon_where_the_store_is_there(
    machine: Machine, slow: SlowStore, is_connected: bool
) -> None:
    """Its space may be full, or it has no leader yet; one that is away tells its return."""
    machine.run()
    machine.status.update(is_store_connected=is_connected)
    slow.refusal = StoreUnavailableError("mvcc: database space exceeded")
    machine.wait(TTL_S - MARGIN_S)
    machine.run(*[lambda: machine.wait(machine.waits[-1])] * 12)
    assert machine.waits[-1] == pytest.approx(2.0 if is_connected else 30.0)
    slow.refusal = None
    machine.lessee.store_is_back()
    machine.run()
    slow.refusal = StoreUnavailableError("mvcc: database space exceeded")
    machine.wait(TTL_S - MARGIN_S)
    machine.run()
    assert machine.waits[-1] == 0.5


def test_node_that_finds_itself_as_it_was_does_not_lock_itself_out(machine: Machine) -> None:
    """The store was put back to when the node had another address: it looks like a twin's."""
    machine.run()
    own = machine.own()
    machine.store.put_lease(own.subnet, moved(own.attributes, 9), TTL_S)
    machine.run(lambda: None)
    assert machine.status.get().phase == CLAIMING
    assert "n1" in machine.store.view().challenges
    machine.run(lambda: machine.wait(10))
    assert machine.own().subnet == own.subnet
    assert machine.store.view().leases[own.subnet.key].attributes == own.attributes
    assert machine.status.get().lessee_error is None


def test_node_that_was_away_writes_nothing_while_its_twin_lives(machine: Machine) -> None:
    machine.run()
    own = machine.own()
    twins = moved(own.attributes, 9)
    stored = machine.store.put_lease(own.subnet, twins, TTL_S)
    machine.waits.clear()

    def answer() -> None:
        nonlocal stored
        if machine.store.view().challenges:
            stored = machine.store.renew(stored, twins, TTL_S)
        machine.wait(machine.waits[-1])

    machine.run(*[answer] * 8)
    assert machine.store.view().leases[own.subnet.key] == stored
    error = machine.status.get().lessee_error
    assert error is not None
    for word in ("192.0.2.1", "192.0.2.9", "--node-name"):
        assert word in error
    assert machine.status.get().phase == CLAIMING
    assert sum(machine.waits) > 40, "it asks ever later"


def test_own_reservation_in_a_store_that_was_put_back_is_taken_up_again(machine: Machine) -> None:
    machine.run()
    own = machine.own()
    machine.store.delete_lease(own.subnet)
    vacant = machine.store.reserve(own.subnet, "n1")
    assert vacant.is_vacant
    machine.run()
    assert not machine.store.view().leases[own.subnet.key].is_vacant
    assert machine.own().subnet == own.subnet


def test_value_that_is_not_what_the_node_wrote_is_mended_at_once(machine: Machine) -> None:
    machine.run()
    own = machine.own()
    machine.store.put_lease(own.subnet, replace(own.attributes, backend_data={}), TTL_S)
    machine.run()
    mended = machine.store.view()
    assert mended.leases[own.subnet.key].attributes == own.attributes
    machine.run(*[machine.look] * 3)
    assert machine.store.view().revision == mended.revision, "once is enough"


def test_question_is_asked_once_while_the_view_still_shows_the_old_lease(machine: Machine) -> None:
    machine.run()
    machine.stale = machine.store.view()
    machine.store.delete_lease(machine.own().subnet)
    machine.store.put_lease(ELSEWHERE.subnet, ELSEWHERE.attributes, 2 * TTL_S)
    machine.wait(TTL_S - MARGIN_S)
    machine.run()
    asked = machine.store.view().challenges["n1"]
    machine.run(*[machine.look] * 3)
    assert machine.store.view().challenges["n1"] == asked
    machine.run(lambda: machine.wait(5))
    assert machine.own().subnet == ELSEWHERE.subnet
