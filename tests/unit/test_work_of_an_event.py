"""What one lease costs the agent: counted in objects that are looked at, not in time."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from overlay.agent.event_peers import peers_of, step
from overlay.agent.policy_enforcer import PolicyEnforcer, PolicyOptions
from overlay.agent.policy_world import NodeAddresses, node_addresses
from overlay.agent.status import Snapshot, Status
from overlay.kernel.notices import RulesetChange
from overlay.model.lease import Lease, LeaseView
from overlay.model.policy_view import PolicyView
from overlay.model.versioned import MapHistory, VersionedMap
from overlay.plan.places import Places
from overlay.plan.planner import Problem
from overlay.plan.prune import Prune, PruneLimit
from tests.kernel.netns import eventually
from tests.unit.test_policy_idle import DENY, Counted, Table, add
from tests.unit.worlds import by_key, lease, site

FOREIGN = 1000  # the generation from which on somebody else wrote


class Watched(VersionedMap[str, Lease]):
    """Leases that count how often one of them is looked at."""

    __slots__ = ("looks",)

    def __init__(self, found: VersionedMap[str, Lease]) -> None:
        super().__init__(found.root, found.count, found.journal)
        self.looks = 0

    def __getitem__(self, key: str) -> Lease:
        self.looks += 1
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.looks += len(self)
        return super().__iter__()

    def values(self) -> Any:
        self.looks += len(self)
        return super().values()

    def items(self) -> Any:
        self.looks += len(self)
        return super().items()


class Store:
    """Leases that come and go one by one, as views of a store show them."""

    def __init__(self, count: int) -> None:
        self._history = MapHistory(by_key(*map(lease, range(2, count + 2))))
        self.leases = Watched(self._history.snapshot())

    def put(self, found: Lease) -> Watched:
        self._history.put(found.subnet.key, found)
        return self._step()

    def delete(self, key: str) -> Watched:
        self._history.discard(key)
        return self._step()

    def _step(self) -> Watched:
        self.leases = Watched(self._history.snapshot())
        return self.leases


def test_addresses_of_nodes_cost_the_lease_that_changed() -> None:
    store, nodes = Store(100), NodeAddresses()
    nodes.follow(store.leases)
    before, first = store.leases.looks, nodes.found
    after = store.put(lease(250))
    nodes.follow(after)
    assert (before > 100, after.looks) == (True, 1)
    assert nodes.found == node_addresses(after)
    same = store.put(lease(250, revision=999))
    known = nodes.found
    nodes.follow(same)
    assert nodes.found is known, "a renewal is no news"
    nodes.follow(store.delete(lease(250).subnet.key))
    assert nodes.found == first


def test_a_deletion_costs_the_lease_that_went() -> None:
    store, places, limit = Store(100), Places(), PruneLimit()
    places.follow(store.leases)
    prune = Prune().after(store.leases, "own", 0.0, limit, places)
    for number in range(2, 12):
        leases = store.delete(lease(number).subnet.key)
        prune = prune.after(leases, "own", number / 100, limit, places)
        assert leases.looks <= 4
    assert not prune.held, "ten of a hundred are no mass"


def test_events_of_peers_cost_the_lease_that_changed() -> None:
    store, here = Store(100), site()
    before = Snapshot(site=here, view=LeaseView(1, store.leases))
    peers = peers_of(before)
    for revision, change in enumerate((lease(250), lease(250, public=251)), 2):
        now = Snapshot(site=here, view=LeaseView(revision, store.put(change)))
        notes = list(step(peers, before, now) or ())
        assert (len(notes), store.leases.looks) == (1, 1)
        assert peers == peers_of(now)
        before = now
    refused = replace(before, problems=(Problem(lease(250).subnet.key, "is odd"),))
    assert step(peers, before, refused) is None, "what is refused is asked of all"


leases = st.builds(
    lambda i, public, node: lease(i, public=public, macs=f"n{node}"),
    st.integers(2, 5),
    st.integers(2, 9),
    st.integers(2, 4),
)


@given(st.lists(st.lists(leases, max_size=4), max_size=6))
def test_addresses_of_nodes_are_those_of_the_leases(steps: list[list[Lease]]) -> None:
    nodes = NodeAddresses()
    for each in steps:
        found = by_key(*each)
        nodes.follow(found)
        assert nodes.found == node_addresses(found)


def test_a_doubt_about_the_table_looks_at_no_pod(tmp_path: Path) -> None:
    attachments, status, table = Counted(tmp_path), Status(), Looked()
    enforcer = PolicyEnforcer("n1", attachments, status, table, PolicyOptions())
    add(attachments, "pod")
    stop = threading.Event()
    thread = threading.Thread(target=enforcer.run, args=(stop,))
    thread.start()
    try:
        enforcer.put(PolicyView(1))
        eventually(lambda: status.get().policy is not None, timeout_s=20)
        enforcer.doubt([RulesetChange(7)])
        enforcer.put(PolicyView(2, policies={DENY.key: DENY}))
        eventually(lambda: table.held is not None and bool(table.held.maps), timeout_s=20)
        assert attachments.looks == 2
        for number in range(1, 21):
            enforcer.doubt([RulesetChange(100 + number)])
            eventually(partial(table.is_asked, 100 + number), timeout_s=20)
        assert attachments.looks == 2
        enforcer.doubt([RulesetChange(FOREIGN)])
        eventually(lambda: status.get().counters.repairs == 1, timeout_s=20)
    finally:
        stop.set()
        enforcer.doubt(())
        thread.join(20)
    assert not thread.is_alive()
    assert attachments.looks == 3, "what somebody else changed is written anew"


class Looked(Table):
    """A table that notes the last generation somebody asked about."""

    asked = 0

    def is_asked(self, number: int) -> bool:
        return self.asked == number

    def is_own(self, number: int) -> bool:
        self.asked = number
        return number < FOREIGN
