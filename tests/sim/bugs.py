"""Bugs to plant, each a small change of one part; the simulation must find every one.

They are what one writes without thinking of a lost answer, a restart, a
compaction or another node. tests/sim/test_bugs.py says within how many seeds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from etcd3.transactions import Get, Put

from overlay.agent.main import Agent
from overlay.kernel.base import NOTHING, OpFailure
from overlay.model.kernel import KernelObject, Key, Op
from overlay.model.lease import Lease, LeaseAttributes, LeaseView, format_attributes
from overlay.model.subnet import Subnet
from overlay.model.versioned import MapHistory
from overlay.store.base import Claim, StopSignal, StoreError
from overlay.store.etcd_errors import CompactedError, OutcomeUnknownError, ResyncError
from overlay.store.etcd_table import KeyValue, LeaseTable, Listing
from overlay.store.etcd_watch import EtcdWatch
from overlay.store.etcd_write import EtcdWriter, Seen
from tests.sim.kernel import SimKernel
from tests.sim.node import SimNode
from tests.sim.store import MakeStore, SimStore
from tests.sim.wire import FakeStream
from tests.sim.world import World

_NEVER_S: Final = 1e9


class BlindRenewal(SimStore):
    """Renews by writing its key, whoever holds it now."""

    def renew(self, lease: Lease, attributes: LeaseAttributes, ttl_s: int) -> Lease:
        """Write without a condition."""
        lease_id = self._writer.grant(ttl_s)
        key = self._writer.subnet_key(lease.subnet)
        put = Put(key, format_attributes(attributes), lease_id)
        found = self._writer._transact([], [put, Get(key)])
        assert found is not None
        return Lease(
            lease.subnet, attributes, found.create_revision, found.mod_revision, found.lease_id
        )


class RevisionOnly(SimStore):
    """Compares the revision alone, which a store that was put back gives out again."""

    def __init__(self, *args: Any, **seams: Any) -> None:
        super().__init__(*args, **seams)
        self._writer = _RevisionWriter(self._connection, self._root)


class _RevisionWriter(EtcdWriter):
    def _replace(self, key: bytes, value: bytes, lease_id: int, seen: Seen) -> Any:
        compare = seen.compare(key)[:1]
        return self._transact(compare, [Put(key, value, lease_id), Get(key)])


class RetriedClaim(SimStore):
    """Takes an answer that was lost for a claim that was not made, and makes another one."""

    def _claim(self, subnet: Subnet, claim: Claim, revision: int) -> Lease | None:
        lease_id = self._writer.grant(claim.ttl_s)
        key = self._writer.subnet_key(subnet)
        put = Put(key, format_attributes(claim.attributes), lease_id)
        try:
            found = self._writer._transact(Seen(0, 0).compare(key), [put, Get(key)])
        except OutcomeUnknownError:
            taken = {subnet.key}
            free = (claim.config.ranges[f].subnet(self._choose(8)) for f in claim.config.families)
            other = Subnet(*free) if len(claim.config.families) == 2 else Subnet(next(free))  # type: ignore[arg-type]  # IPv4 first
            return None if other.key in taken else self._claim(other, claim, revision)
        if found is None:
            return None
        return Lease(
            subnet, claim.attributes, found.create_revision, found.mod_revision, found.lease_id
        )


class BuggyWatch(SimStore):
    """Watches with another watch, or another table."""

    watch_type: type[EtcdWatch[LeaseView]] = EtcdWatch
    table_type: type[LeaseTable] = LeaseTable

    def watch(
        self,
        deliver: Callable[[LeaseView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Watch, overheard like the real one."""
        self.watch_type(
            self._connection,
            self.table_type(self._reader),
            self._root,
            open_stream=self._open_stream,
            clock=self._clock,
            uniform=self._uniform,
        ).run(self.judged(deliver), trouble, stop)


class _AddingTable(LeaseTable):
    def replace(self, listing: Listing) -> None:
        before = self._leases.snapshot()
        super().replace(listing)
        self._leases = MapHistory({**before, **self._leases.snapshot()})


class RelistWithoutCompare(BuggyWatch):
    """Adds what a new listing has, and does not look what it no longer has."""

    table_type = _AddingTable


class _TrustingWatch(EtcdWatch[LeaseView]):
    def _compare(self, header: Any) -> None:
        del header

    def _verify(self) -> None:
        return


class BelievedHistory(BuggyWatch):
    """Does not ask whether the store was put back."""

    watch_type = _TrustingWatch


class _RevisionWatch(EtcdWatch[LeaseView]):
    def _verify(self) -> None:
        return


class BelievedRevision(BuggyWatch):
    """Asks by the revision alone whether the store was put back."""

    watch_type = _RevisionWatch


class _KeysTable(LeaseTable):
    def is_made_of(self, keys: Iterable[KeyValue]) -> bool:
        found = {each.key: (each.create_revision, each.mod_revision) for each in keys}
        return found == {key: state[:2] for key, (state, _) in self.evidence().items()}


class UnreadConfig(BuggyWatch):
    """Asks by keys and revisions alone whether the store was put back."""

    table_type = _KeysTable


class _RestlessWatch(EtcdWatch[LeaseView]):
    def _views(self, deliver: Callable[[LeaseView], None], stop: StopSignal) -> Iterator[bool]:
        while not stop.is_set():
            try:
                yield from super()._views(deliver, stop)
            except (CompactedError, ResyncError):
                self._must_list = True


class RestlessWatch(BuggyWatch):
    """Lists again at once, for as long as no stream can be followed."""

    watch_type = _RestlessWatch


class LostEvent(SimStore):
    """Resumes its watch one revision too late."""

    def __init__(self, *args: Any, **seams: Any) -> None:
        seams["open_stream"] = lambda member, root, revision: FakeStream(member, root, revision + 1)
        super().__init__(*args, **seams)


class StubbornHolder(BuggyWatch):
    """Believes what it remembers of its own lease, and not the store."""

    mine: Lease | None = None

    def acquire(self, claim: Claim) -> Lease:
        """Acquire, and remember."""
        self.mine = super().acquire(claim)
        return self.mine

    def watch(
        self,
        deliver: Callable[[LeaseView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Put the own lease into every view."""

        def amend(view: LeaseView) -> None:
            if self.mine is None:
                deliver(view)
                return
            leases = {**view.leases, self.mine.subnet.key: self.mine}
            deliver(LeaseView(view.revision, leases, view.config, view.config_error, view.skipped))

        super().watch(amend, trouble, stop)


class _DeletingFirst(SimKernel):
    """Deletes what is to go before it sets what is to come."""

    def apply(self, ops: Iterable[Op]) -> tuple[OpFailure, ...]:
        return super().apply(sorted(ops, key=lambda op: op.verb))


class _ForgetfulKernel(SimKernel):
    """Shows an agent only what that agent made: a clean-up by events knows of nothing else."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._made: dict[int, set[Key]] = {}

    def dump(self, known: Mapping[Key, KernelObject] = NOTHING) -> Sequence[KernelObject]:
        made = self._made.get(id(self.process), set())
        return [item for item in super().dump(known) if item.key in made]

    def apply(self, ops: Iterable[Op]) -> tuple[OpFailure, ...]:
        ops = list(ops)
        self._made.setdefault(id(self.process), set()).update(op.target.key for op in ops)
        return super().apply(ops)


class _GreedyKernel(SimKernel):
    """Takes every route into the pod network for its own, whoever made it."""

    def dump(self, known: Mapping[Key, KernelObject] = NOTHING) -> Sequence[KernelObject]:
        return [*super().dump(known), *self.foreign.values()]


def _world(
    make_store: MakeStore = SimStore, amend: Callable[[SimNode], None] = lambda _node: None
) -> Callable[[int, bool], World]:
    def make(seed: int, is_traced: bool) -> World:
        world = World(seed, make_store, is_traced=is_traced)
        for node in world.nodes:
            amend(node)
        return world

    return make


def _with_kernel(kind: type[SimKernel]) -> Callable[[SimNode], None]:
    def amend(node: SimNode) -> None:
        node.kernel = kind(node.loop, node.name, node.blame)
        node.kernel.notices = node.hear

    return amend


def _trust_wall_clock(node: SimNode) -> None:
    node.wants_wall_clock = True


def _unfenced(node: SimNode) -> None:
    """Believe in the own lease until somebody tells otherwise."""
    node.amend = lambda agent: setattr(agent.lessee.times, "end_of", lambda _own, _at: _NEVER_S)


def _late_fence(node: SimNode) -> None:
    """Count the lease's time from when the store's answer came."""

    def amend(agent: Agent) -> None:
        times = agent.lessee.times
        end_of = times.end_of
        late = lambda own, _asked_at: end_of(own, node.boot_clock())  # noqa: E731
        setattr(times, "end_of", late)  # noqa: B010 - mypy knows no method to assign

    node.amend = amend


BUGS: Final[dict[str, Callable[[int, bool], World]]] = {
    "blind-renewal": _world(BlindRenewal),
    "clean-up-by-event": _world(amend=_with_kernel(_ForgetfulKernel)),
    "relist-without-compare": _world(RelistWithoutCompare),
    "delete-before-set": _world(amend=_with_kernel(_DeletingFirst)),
    "retried-claim": _world(RetriedClaim),
    "wall-clock": _world(amend=_trust_wall_clock),
    "believed-history": _world(BelievedHistory),
    "believed-revision": _world(BelievedRevision),
    "revision-only": _world(RevisionOnly),
    "unread-config": _world(UnreadConfig),
    "no-fence": _world(amend=_unfenced),
    "late-fence": _world(amend=_late_fence),
    "restless-watch": _world(RestlessWatch),
    "lost-event": _world(LostEvent),
    "stubborn-holder": _world(StubbornHolder),
    "foreign-objects": _world(amend=_with_kernel(_GreedyKernel)),
}
