"""What must hold after every step, and once all is quiet. See docs/simulation.md.

Judged from outside: from what the fake etcd committed and the fake kernels
hold, parsed and planned afresh, not from what the agents say of themselves.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from overlay.agent.status import RUNNING
from overlay.ipam.claim import is_kept_for, subnet_behind
from overlay.model.errors import ConfigError, LeaseFormatError
from overlay.model.lease import Lease, LeaseView, parse_lease
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.subnet import Subnet
from overlay.plan.planner import desired
from tests.sim import etcd
from tests.sim.node import SimNode

ROOT: Final = "/coreos.com/network/"
SUBNETS: Final = f"{ROOT}subnets/".encode()
CONFIG: Final = f"{ROOT}config".encode()
_GRACE_S: Final = 0.1  # from a view in hand to acting on it
# The same where the view is older than the node's own claim: the agent asks each minute.
_LATE_S: Final = 70.0
_RENEWED_S: Final = 45.0  # the longest retry and a call: by then a lease is renewed
_CALLS_MOST: Final = 200  # of one node's in _BUSY_S; the busiest of 500 seeds made 105
_BUSY_S: Final = 10.0
_CALL_S: Final = 60.0  # the same while a call of the store is waited for


class BrokenError(AssertionError):
    """An invariant does not hold."""


@lru_cache(maxsize=100_000)
def read_lease(kv: etcd.KeyValue) -> Lease | None:
    """Return the lease that a key holds, None where it cannot be read."""
    name = kv.key[len(SUBNETS) :].decode(errors="replace")
    try:
        lease = parse_lease(
            name,
            kv.value,
            create_revision=kv.create_revision,
            mod_revision=kv.mod_revision,
            lease_id=kv.lease,
        )
    except LeaseFormatError:
        return None
    return lease if lease.subnet.key == name else None


@lru_cache(maxsize=1000)
def read_config(value: bytes) -> NetworkConfig | None:
    """Return the network config that a value holds, None where it cannot be read."""
    try:
        return parse_network_config(value)
    except ConfigError:
        return None


class Invariants:
    """Watches one world. ``violations`` are sentences."""

    def __init__(self, cluster: etcd.FakeEtcd, now: Callable[[], float]) -> None:
        self._cluster = cluster
        self._now = now
        self.nodes: Sequence[SimNode] = ()
        self.violations: list[str] = []
        self.double_owners = 0
        self.is_quiet = False  # no message is lost or late
        self.unknowing_s = 0.0  # how long nodes owned what they could not know to be lost
        self._unknowing_at: float | None = None
        self._judged: list[int] = []
        self._has_doubts = False
        # Since each key was created: the last readable lease of each that held it.
        self._holders: dict[tuple[bytes, int], dict[str | None, Lease]] = {}
        self._past: dict[int, list[Mapping[bytes, etcd.KeyValue]]] = defaultdict(list)
        self._last_view: dict[str, tuple[int, LeaseView]] = {}
        self._past[1].append({})
        self._created: dict[str, dict[bytes, int]] = defaultdict(dict)  # by the claim that did
        self._ended: dict[str, bytes] = {}  # what each claim came back with
        self._calls: dict[str, deque[float]] = defaultdict(deque)  # when, of each node's, lately

    def blame(self, text: str) -> None:
        """Note a violation."""
        self.violations.append(f"at {self._now():.3f} s: {text}")

    def called(self, name: str) -> None:
        """Judge how often a node asks the store: never without a pause."""
        calls, now = self._calls[name], self._now()
        calls.append(now)
        while calls[0] < now - _BUSY_S:
            calls.popleft()
        if len(calls) > _CALLS_MOST:
            self.blame(f"{name} asks the store {len(calls)} times in {_BUSY_S:g} s")
            calls.clear()

    def restored(self) -> None:
        """Note that the store is another one from here on."""
        for kv in self._cluster.keys.values():
            self._note(kv)
        self._judged = []

    def committed(self, author: str, events: Sequence[etcd.Event]) -> None:
        """Judge one revision: nobody writes over, or deletes, what is another's."""
        self._judged = []
        self._past[self._cluster.revision].append(self._cluster.keys)
        name = author.partition(",")[0]
        node = next((n for n in self.nodes if n.name == name), None)
        for event in events:
            if not event.kv.key.startswith(SUBNETS):
                continue
            if node is not None:
                self._judge_write(node, event)
            if author == "etcd" and event.before is not None:
                self._judge_expiry(event.before)
                self._judge_fence(event.before)
            if not event.is_delete:
                self._note(event.kv)
                if event.before is None:
                    self._judge_created(author, event.kv.key)

    def delivered(self, node: SimNode, view: LeaseView) -> None:
        """Judge a view: it is what the store held at that revision, but for what is unreadable."""
        before = self._last_view.get(node.name)
        known = before[1] if before is not None and before[0] == node.starts else None
        states = self._past.get(view.revision) or [self._state_before(view.revision)]
        if not any(_agrees(view, known, state) for state in states):
            self.blame(
                f"{node.name}: its view at revision {view.revision} with leases "
                f"{sorted(view.leases)} is nothing that the store ever held"
            )
        self._last_view[node.name] = (node.starts, view)
        node.known.seen_at = self._now()
        self._judged = []

    def claimed(self, node: SimNode, claim: str, lease: Lease) -> None:
        """Judge a claim that has come back: nothing else of it may be left, or come later."""
        kept = SUBNETS + lease.subnet.key.encode()
        node.known.claimed_at = self._now()
        self._ended[claim] = kept
        for key in sorted(self._created[claim]):
            kv = self._cluster.keys.get(key)
            found = read_lease(kv) if kv is not None else None
            if found is None or key == kept or _owner(found) != node.name:
                continue
            if found.create_revision == self._created[claim][key]:
                self.blame(f"{node.name}: {claim} left {_name(key)} beside {lease.subnet.key}")

    def _judge_created(self, author: str, key: bytes) -> None:
        name, _, claim = author.partition(", ")
        if not claim:
            return
        self._created[claim][key] = self._cluster.revision
        if self._ended.get(claim, key) != key:
            self.blame(f"{name}: {claim} was over, and yet makes {_name(key)}")

    def check(self) -> None:
        """Judge who believes to own what; quickly where nothing has changed that it depends on."""
        state = [self._cluster.revision]
        for node in self.nodes:
            snapshot = node.agent.status.get() if node.agent is not None else None
            state += (id(snapshot), node.is_running, id(node.known.views))
        if state == self._judged and not self._has_doubts:
            return
        self._judged = state
        self._note_doubts()
        owners = [(node, subnet) for node in self.nodes if (subnet := node.believes())]
        is_unknowing = False
        for index, (one, subnet) in enumerate(owners):
            for other, theirs in owners[index + 1 :]:
                if not subnet.overlaps(theirs):
                    continue
                guilty = [n for n in (one, other) if not self._holds(n) and self._should_know(n)]
                if guilty:
                    self.double_owners += 1
                    self.blame(
                        f"{subnet} has two owners: {one.name} and {other.name}; "
                        f"{guilty[0].name} was told otherwise"
                    )
                is_unknowing = True
        if self._unknowing_at is not None:
            self.unknowing_s += self._now() - self._unknowing_at
        self._unknowing_at = self._now() if is_unknowing else None
        self._has_doubts = is_unknowing or any(n.known.doubt_since is not None for n in self.nodes)

    def check_quiet(self, *, is_last: bool = True) -> bool:
        """Judge a world in which nothing was wrong for long enough; return whether all is well.

        What a message on its way explains is blamed only in the last of several looks.
        """
        before = len(self.violations)
        self._check_quiet()
        is_well = len(self.violations) == before
        if not is_last:
            del self.violations[before:]
        return is_well

    def _check_quiet(self) -> None:
        leases = self.leases()
        config = read_config(self._cluster.keys[CONFIG].value)
        assert config is not None
        for node in self.nodes:
            self._check_quiet_node(node, leases)
        subnets = [(node.name, s) for node in self.nodes if (s := node.believes())]
        for index, (name, subnet) in enumerate(subnets):
            for other, theirs in subnets[index + 1 :]:
                if subnet.overlaps(theirs):
                    self.double_owners += 1
                    self.blame(f"{subnet} is owned by {name} and {other} when all is quiet")

    def leases(self) -> dict[str, Lease]:
        """Return the readable leases in the store now."""
        return _readable(self._cluster.keys)

    def _check_quiet_node(self, node: SimNode, leases: Mapping[str, Lease]) -> None:
        agent = node.agent
        if agent is None or not node.is_running:
            self.blame(f"{node.name} does not run when all is quiet")
            return
        snapshot = agent.status.get()
        own = [x for x in leases.values() if not x.is_vacant and _owner(x) == node.name]
        if len(own) != 1:
            held = [lease.subnet.key for lease in own]
            self.blame(
                f"{node.name} holds {held or 'nothing'} when all is quiet: {snapshot.reasons}"
            )
            return
        site, view = snapshot.site, snapshot.view
        if site is None or view is None or snapshot.phase != RUNNING or snapshot.kernel_errors:
            self.blame(f"{node.name} is not ready when all is quiet: {snapshot.reasons}")
            return
        if site.own.subnet != own[0].subnet or site.own.attributes != own[0].attributes:
            self.blame(f"{node.name} has {site.own}, the store {own[0]}")
        if not _agrees(view, view, self._cluster.keys):
            missing = sorted(leases.keys() ^ view.leases.keys())
            self.blame(f"{node.name}: its view is not the store's when all is quiet: {missing}")
        plan = desired(site, view.leases)
        have, want = node.kernel.objects, plan.objects
        wrong = [str(want.get(k) or have.get(k)) for k in want.keys() | have.keys()
                 if want.get(k) != have.get(k)]  # fmt: skip
        if wrong:
            self.blame(
                f"{node.name}: kernel is not as planned when all is quiet: {sorted(wrong)[:4]}"
            )
        if node.kernel.foreign != node.kernel.untouched:
            self.blame(f"{node.name}: what others made was changed")
        if node.filter.nodes != plan.addresses():
            self.blame(f"{node.name}: the filter has {node.filter.nodes}, not {plan.addresses()}")
        if node.filter.site is None or node.filter.site.own.subnet != site.own.subnet:
            self.blame(f"{node.name}: the filter is for another subnet")

    def _judge_write(self, node: SimNode, event: etcd.Event) -> None:
        before = event.before
        verb = "deleted" if event.is_delete else "wrote over"
        if before is None:
            self._judge_new(node, event.kv)
            return
        lease = read_lease(before)
        if lease is None:
            known = self._holders.get((before.key, before.create_revision), {})
            # Whoever of its holders finds it unreadable may mend it.
            lease = known.get(node.name) or next(iter(known.values()), None)
        is_theirs = lease is None or not (
            (_owner(lease) == node.name and not lease.is_vacant)
            or is_kept_for(lease, node.flags.node)
            or (_owner(lease) is None and any(map(node.had, lease.attributes.public.values())))
        )
        if is_theirs:
            holder = lease.node if lease is not None else "somebody"
            self.blame(f"{node.name} {verb} {_name(before.key)}, which was {holder}'s")

    def _judge_new(self, node: SimNode, kv: etcd.KeyValue) -> None:
        subnet = subnet_behind(_name(kv.key))
        for other in self._cluster.keys.values():
            if other.key == kv.key or not other.key.startswith(SUBNETS) or subnet is None:
                continue
            theirs = subnet_behind(_name(other.key))
            if theirs is not None and theirs.v4 is not None and theirs.v4 == subnet.v4:
                self.blame(f"{node.name} claimed {_name(kv.key)} beside {_name(other.key)}")

    def _judge_expiry(self, before: etcd.KeyValue) -> None:
        lease = read_lease(before)
        node = next((n for n in self.nodes if lease and n.name == _owner(lease)), None)
        if not self.is_quiet or node is None or not node.is_running or lease is None:
            return
        believed = node.believes()
        awake_since = node.process.frozen_until if node.process is not None else 0.0
        calm_s = self._now() - max(node.calm_since, awake_since)
        if believed == lease.subnet and calm_s > _RENEWED_S:
            self.blame(f"{node.name} let its lease of {lease.subnet} run out although all was well")

    def _judge_fence(self, before: etcd.KeyValue) -> None:
        """Judge that the holder of a lease that etcd ends knew so by its own clock."""
        lease = read_lease(before)
        for node in self.nodes:
            believed = node.believes()
            if lease is None or believed != lease.subnet or _owner(lease) != node.name:
                continue
            site = node.agent.status.get().site if node.agent is not None else None
            if site is not None and not site.own.is_permanent:
                self.double_owners += 1
                self.blame(f"{node.name} gives addresses of {believed}, whose lease has run out")

    def _note(self, kv: etcd.KeyValue) -> None:
        lease = read_lease(kv) if kv.key.startswith(SUBNETS) else None
        if lease is None:
            return
        self._holders.setdefault((kv.key, kv.create_revision), {})[_owner(lease)] = lease

    def _note_doubts(self) -> None:
        """Remember since when a node has been told that its subnet is not its own."""
        for node in self.nodes:
            subnet, views = node.believes(), node.known.views
            is_told = False
            if subnet is not None and views and node.agent is not None:
                site = node.agent.status.get().site
                lease = views[-1].leases.get(subnet.key)
                is_told = lease is None or _owner(lease) != node.name
                # By revision, and by time: a store that was put back counts from less again.
                is_late = (
                    site is None
                    or views[-1].revision <= site.own.mod_revision
                    or node.known.seen_at < node.known.claimed_at
                )
                grace_s = _LATE_S if is_late else _GRACE_S
                if grace_s != node.known.grace_s:
                    node.known.grace_s, node.known.doubt_since = grace_s, None
            if not is_told:
                node.known.doubt_since = None
            elif node.known.doubt_since is None:
                node.known.doubt_since = self._now()

    def _holds(self, node: SimNode) -> bool:
        """Return whether the store says that what the node believes in is its own."""
        subnet = node.believes()
        kv = self._cluster.keys.get(SUBNETS + subnet.key.encode()) if subnet is not None else None
        lease = read_lease(kv) if kv is not None else None
        return lease is not None and _owner(lease) == node.name

    def _should_know(self, node: SimNode) -> bool:
        since = node.known.doubt_since
        if since is None or (node.process and node.process.frozen_until > self._now() - _GRACE_S):
            return False
        return self._now() - since > (_CALL_S if node.known.is_in_store else node.known.grace_s)

    def _state_before(self, revision: int) -> Mapping[bytes, etcd.KeyValue]:
        return self._past[max((r for r in self._past if r <= revision), default=1)][-1]


def _agrees(view: LeaseView, known: LeaseView | None, state: Mapping[bytes, etcd.KeyValue]) -> bool:
    """Return whether ``view`` shows ``state``; an unreadable key may stay as it was known."""
    readable = _readable(state)
    for key, kv in state.items():
        name = _name(key)
        if not key.startswith(SUBNETS) or name in readable:
            continue
        kept = view.leases.get(name)
        if kept is not None:
            readable[name] = kept
        elif known is not None and name in known.leases and _is_same(known.leases[name], kv):
            return False
    config = state.get(CONFIG)
    wanted = read_config(config.value) if config is not None else None
    return dict(view.leases) == readable and view.config == wanted


def _is_same(lease: Lease, kv: etcd.KeyValue) -> bool:
    return lease.create_revision == kv.create_revision


def _readable(state: Mapping[bytes, etcd.KeyValue]) -> dict[str, Lease]:
    found = (read_lease(kv) for key, kv in state.items() if key.startswith(SUBNETS))
    return {lease.subnet.key: lease for lease in found if lease is not None}


def _name(key: bytes) -> str:
    return key[len(SUBNETS) :].decode(errors="replace")


def _owner(lease: Lease) -> str | None:
    return lease.attributes.owner.node_id if lease.attributes.owner is not None else None


__all__ = ["CONFIG", "ROOT", "SUBNETS", "BrokenError", "Invariants", "Subnet", "read_lease"]
