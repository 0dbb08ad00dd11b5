"""What the agent's threads tell one another and the outside: a snapshot, and a mailbox."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isinf
from typing import Any, Generic, Protocol, TypeVar

from overlay.agent.events import Events
from overlay.agent.pace import Fight
from overlay.agent.timings import Timings
from overlay.model.attachment import Attachment
from overlay.model.lease import Lease, LeaseView, SkippedKey
from overlay.model.subnet import Subnet
from overlay.plan.planner import Problem, Site

T = TypeVar("T")

WAITING_STORE = "waiting for the store"
WAITING_HOST = "waiting for this host"
WAITING_CONFIG = "waiting for a network config"
CONFIG_INVALID = "network config invalid"
CLAIMING = "claiming a subnet"
PROGRAMMING = "programming the kernel"
RUNNING = "running"
LAPSED = "own lease has run out and could not be renewed"


@dataclass(frozen=True, slots=True)
class Counters:
    """What has happened since the start; for metrics."""

    passes: int = 0
    ops: int = 0
    op_failures: int = 0
    ruleset_applies: int = 0
    repairs: int = 0
    store_troubles: int = 0
    notice_losses: int = 0
    mass_deletions: int = 0
    policy_applies: int = 0
    policy_cuts: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """Peers that vanished from the store together, by lease key, and are not let go yet.

    ``until`` is of the monotonic clock; infinite where an operator said to
    keep them.
    """

    leases: Mapping[str, Lease]
    until: float

    def seconds_left(self, now: float) -> float | None:
        """Return how long the first of them is held yet; None where that has no end."""
        return None if isinf(self.until) else max(0.0, self.until - now)


@dataclass(frozen=True, slots=True)
class PolicyState:
    """How network policies stood when the table was last brought in step."""

    policies: int = 0  # in the whole fabric
    isolated: int = 0  # addresses of this node's pods that are
    compile_s: float = 0.0
    apply_s: float = 0.0
    skipped: tuple[SkippedKey, ...] = ()
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where the agent stands. Never changed: every change makes a new one.

    ``reasons`` says in words why the agent is not ready; ``warnings`` what an
    operator should look at although traffic flows.
    """

    phase: str = WAITING_STORE
    store_error: str | None = None
    is_store_connected: bool = False
    lessee_error: str | None = None
    config_error: str | None = None
    kernel_errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    leased: Subnet | None = None  # by the store; ``site`` follows once the kernel does
    lease_ends: float = inf  # on the boot clock, at the earliest, unless it is renewed
    site: Site | None = None
    view: LeaseView | None = None
    problems: Mapping[str, Problem] = field(default_factory=dict)  # by lease key
    peers: int = 0
    mtu: int = 0  # bytes
    last_pass_s: float = 0.0
    held: Held | None = None
    fights: tuple[Fight, ...] = ()  # over objects of ours, as of the last repair
    policy: PolicyState | None = None  # None where policies are off, or not known yet
    policy_error: str | None = None  # why the table is not what the policies say
    policy_trouble: str | None = None  # why the source of policies does not answer
    counters: Counters = field(default_factory=Counters)

    def subnet_at(self, now: float) -> Subnet | None:
        """Return the subnet that a pod gets an address of; None while that is not settled.

        ``now`` is of the boot clock: past the end of its lease the subnet may
        be another node's, and nobody could tell this one (decision 0010).
        """
        # A node that is claiming may be about to lose its subnet to another.
        is_settled = self.phase not in {CLAIMING, LAPSED} and now < self.lease_ends
        if self.site is None or self.mtu == 0 or not is_settled:
            return None
        known = self.site.own.subnet
        return known if self.leased in {None, known} else None

    @property
    def is_ready(self) -> bool:
        """Return whether a lease is held and the kernel is in step.

        A store that is away is no reason, but for longer than the lease lasts.
        """
        return self.phase == RUNNING and not self.kernel_errors and self.policy_error is None

    def contested(self, now: float) -> tuple[Fight, ...]:
        """Return what somebody changed again and again until lately."""
        return tuple(fight for fight in self.fights if fight.is_on(now))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return why the agent is not ready, or empty."""
        if self.is_ready:
            return ()
        policy = () if self.policy_error is None else (f"network policies: {self.policy_error}",)
        if self.phase == RUNNING:
            return (*self.kernel_errors, *policy)
        known = (self.config_error, self.lessee_error, self.store_error)
        return (self.phase, *(text for text in known if text), *self.kernel_errors, *policy)


def stranded_text(attachment: Attachment, snapshot: Snapshot) -> str:
    """Return why ``attachment``, which has an address outside the node's subnet, needs a look."""
    subnet = snapshot.site.own.subnet if snapshot.site is not None else "?"
    return (
        f"{attachment.shown} is stranded: this node now leases {subnet}, so other nodes do not "
        "reach it; recreate it"
    )


class Status:
    """The latest snapshot; any thread reads it, each writes its own fields.

    What happened on the way there is in ``events``, how long it took in ``timings``.
    """

    def __init__(self, events: Events | None = None) -> None:
        self.events = events if events is not None else Events()
        self.timings = Timings()
        self._changed = threading.Condition()
        self._snapshot = Snapshot()

    def get(self) -> Snapshot:
        """Return the latest snapshot."""
        return self._snapshot

    def update(self, **changes: Any) -> Snapshot:
        """Replace fields of the snapshot; return the new one."""
        with self._changed:
            self._snapshot = replace(self._snapshot, **changes)
            self._changed.notify_all()
            return self._snapshot

    def wait_for(self, is_enough: Callable[[Snapshot], bool], timeout_s: float) -> Snapshot:
        """Return the latest snapshot, at once when it is enough, else when the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: is_enough(self._snapshot), timeout_s)
            return self._snapshot

    def programmed(self) -> None:
        """Note that the kernel is in step, where nothing but that was missing."""
        with self._changed:
            if self._snapshot.phase == PROGRAMMING:
                self._snapshot = replace(self._snapshot, phase=RUNNING)
                self._changed.notify_all()

    def count(self, **more: int) -> None:
        """Add to counters, each by its name; several threads may count at once."""
        with self._changed:
            counters = self._snapshot.counters
            sums = {name: getattr(counters, name) + number for name, number in more.items()}
            self._snapshot = replace(self._snapshot, counters=replace(counters, **sums))


class Bell(Protocol):
    """The part of ``threading.Event`` that the agent's threads wake one another by."""

    def is_set(self) -> bool:
        """Return whether it was rung since it was last cleared."""

    def set(self) -> None:
        """Ring it."""

    def clear(self) -> None:
        """Make it silent."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds for it; return whether it was rung."""


class Mailbox(Generic[T]):
    """Holds the latest value that one thread leaves for another, and rings a shared bell."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._value: T | None = None

    def put(self, value: T) -> None:
        """Leave ``value``; an older one that nobody took is dropped."""
        self._value = value
        self._bell.set()

    def get(self) -> T | None:
        """Return the latest value, None before the first."""
        return self._value
