"""The node's policies in its kernel: compiled, applied as one transaction, kept in step.

One thread writes. An ADD whose pod a policy isolates waits here until the
kernel judges the pod's packets; all others go on at once. What nft refuses
leaves the table that is there, and the node is not ready until it is mended.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from overlay.agent.attachments import Attachments
from overlay.agent.doubts import NEVER, named
from overlay.agent.pace import Pace
from overlay.agent.policy_world import NOTHING, Selecting, WorldMaker, pod_key
from overlay.agent.status import PolicyState, Status
from overlay.kernel.base import KernelError
from overlay.kernel.bridge_frames import show_bridged_frames
from overlay.kernel.notices import RulesetChange
from overlay.model.attachment import BRIDGE, Attachment
from overlay.model.errors import OverlayError
from overlay.model.event import Kind
from overlay.model.kernel import Key
from overlay.model.lease import LeaseView
from overlay.model.netpol import World
from overlay.model.policy_view import PolicyView
from overlay.policy.network.compile import CompileOptions, PolicyCompiler
from overlay.policy.network.midway import guarded, is_empty, isolated
from overlay.policy.network.render import LogOptions
from overlay.policy.network.table import POLICY_TABLE, Denial, PolicyRuleset
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

_WAIT_S: Final = 10.0  # that an ADD waits for its pod's rules
_RETRY_S: Final = (0.2, 1.0, 5.0, 15.0)  # after nft refused
_IDLE_S: Final = 3600.0
NONE: Final = frozenset[str]()
_TABLE: Final[Key] = ("table", POLICY_TABLE)


class PolicyNotInForceError(KernelError):
    """A pod that a policy isolates cannot be started: the kernel would not keep it isolated."""


class PolicyTable(Protocol):
    """The table in the kernel: ``overlay.kernel.nft_policy.NftPolicyTable`` fits."""

    def apply(self, ruleset: PolicyRuleset) -> bool:
        """Make the table this one; return whether anything was written. Raises NftError."""

    def is_own(self, number: int) -> bool:
        """Return whether the transaction that made this generation, and touched it, is ours."""

    def forget(self) -> None:
        """Write all of it at the next ``apply``."""

    def remove(self) -> bool:
        """Remove the table; return whether there was one. Raises NftError."""


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """How policies are enforced; ``log`` is None where refused packets are counted alone."""

    log: LogOptions | None = None
    admin_tier: bool = False


class PolicyEnforcer:
    """``admit``, ``wake``, ``tell`` and ``put`` are for any thread, ``run`` is one of its own.

    ``applied`` is called in that thread after each change of the table, with
    the world that it was made of.
    """

    def __init__(
        self,
        node: str,
        attachments: Attachments,
        status: Status,
        table: PolicyTable,
        options: PolicyOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        applied: Callable[[World, CompileOptions], None] = lambda _world, _options: None,
        show_bridged: Callable[[], None] = show_bridged_frames,
    ) -> None:
        self._attachments, self._status, self._table = attachments, status, table
        self._options, self._clock, self._applied = options, clock, applied
        self._node, self._show_bridged = node, show_bridged
        self._maker = WorldMaker(node)
        self._compiler: PolicyCompiler | None = None
        self._compile_options = CompileOptions()
        self._changed = threading.Condition()
        self._asked = self._done = 0  # tickets: what is asked for, what is in force
        self._view: PolicyView | None = None
        self._leases: LeaseView | None = None
        self._selecting = Selecting(NOTHING)
        self._known: frozenset[str] = frozenset()  # addresses that the table tells apart
        self._error: str | None = None
        self._failures = 0
        self._pace = Pace()
        self._tried = 0  # the last ticket that was taken up, whatever became of it
        self._retry_at = self._repair_at = NEVER
        self._doubts: deque[RulesetChange | str] = deque()
        self._is_there = True  # the table, as far as is known: one may be left from before
        self.world = World()
        self.denials: dict[str, Denial] = {}

    def put(self, view: PolicyView) -> None:
        """Leave what the source holds now."""
        with self._changed:
            self._view = view
            self._selecting = Selecting(view, self._options.admin_tier)
            self._ask()

    def wake(self) -> None:
        """Look at the node's pods again: one came, or went."""
        with self._changed:
            if not self._is_idle:
                self._ask()

    def follow(self, view: LeaseView) -> None:
        """Leave what leases there are now: some policies are about addresses of nodes."""
        with self._changed:
            self._leases = view
            if self._selecting.is_about_nodes:
                self._ask()

    def doubt(self, doubts: Iterable[RulesetChange | str]) -> None:
        """Have the table written anew where ``doubts`` are not about our own writes.

        Each is a transaction that touched it, or says what of it is found changed.
        """
        with self._changed:
            self._doubts.extend(doubts)
            self._changed.notify_all()

    def admit(self, attachment: Attachment) -> None:
        """Return once the kernel judges the packets of a pod that is about to start.

        At once where no policy is about it. Raises PolicyNotInForceError.
        """
        deadline = self._clock() + _WAIT_S
        with self._changed:
            if not self._changed.wait_for(lambda: self._view is not None, _WAIT_S):
                msg = "the policies are not known yet: the store has not answered since the start"
                raise PolicyNotInForceError(msg)
            if self._is_idle:
                return
            ticket = self._ask()
            if not self._must_wait(attachment):
                return
            self._changed.wait_for(
                lambda: self._done >= ticket or self._error is not None,
                max(0.0, deadline - self._clock()),
            )
            if self._done < ticket:
                reason = self._error or f"the kernel's rules were not ready in {_WAIT_S:g} s"
                raise PolicyNotInForceError(f"network policies are not in force: {reason}")

    @property
    def _is_idle(self) -> bool:
        """Return whether there is no policy, and no table: then no pod changes anything.

        To look at all pods for each that comes or goes cost a third of attaching it.
        """
        return self._selecting.is_idle and not self._is_there

    def _must_wait(self, attachment: Attachment) -> bool:
        """Return whether rules are about the pod, or were about another with its address."""
        if self._selecting.is_idle and not self._known:
            return False
        if self._selecting.isolates(pod_key(attachment), attachment.labels):
            return True
        return any(str(address) in self._known for address in attachment.addresses)

    def _ask(self) -> int:
        self._asked += 1
        self._changed.notify_all()
        return self._asked

    def run(self, stop: StopSignal) -> None:
        """Keep the table in step until ``stop`` is set; it stays as it is then."""
        while not stop.is_set():
            with self._changed:
                wake_at = min(self._retry_at, self._repair_at, self._clock() + _IDLE_S)
                self._changed.wait_for(
                    lambda: self._is_due or stop.is_set(), max(0.0, wake_at - self._clock())
                )
                ticket, view = self._asked, self._view
                doubts = list(self._doubts)
                self._doubts.clear()
            if view is None or stop.is_set():
                continue
            self._judge(doubts)
            is_late = self._clock() >= min(self._retry_at, self._repair_at)
            if is_late or ticket > self._tried:
                self._step(ticket, view)

    @property
    def _is_due(self) -> bool:
        return self._view is not None and (self._asked > self._tried or bool(self._doubts))

    def _judge(self, doubts: Iterable[RulesetChange | str]) -> None:
        """Have the table written anew, at once or later, where somebody else changed it."""
        others = [
            each
            for each in doubts
            if isinstance(each, str) or not self._table.is_own(each.generation)
        ]
        if not others or not self._is_there:
            return
        self._table.forget()
        if self._repair_at < NEVER:
            return
        self._repair_at = self._pace.next_at(self._clock(), _TABLE)
        told = [each if isinstance(each, str) else each.by for each in others]
        text = f"somebody else changed the table {POLICY_TABLE}{named(told)}; it is written anew"
        log.warning("%s", text)
        self._status.events.note(Kind.DRIFT_REPAIRED, text)

    def _step(self, ticket: int, view: PolicyView) -> None:
        """Bring the table in step; where that fails it is tried again later, or when asked."""
        begun_at = self._clock()
        self._tried = ticket
        is_repair = self._repair_at < NEVER
        self._retry_at = self._repair_at = NEVER
        try:
            self._bring_in_step(view, begun_at)
        except OverlayError as exc:
            delay_s = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
            self._failures += 1
            self._table.forget()
            self._retry_at = self._clock() + delay_s
            self._report(str(exc))
            return
        if is_repair:
            self._pace.repaired(self._clock(), {_TABLE: f"the table {POLICY_TABLE}"})
            self._status.count(repairs=1)
        self._failures = 0
        self._report(None, ticket)

    def _bring_in_step(self, view: PolicyView, begun_at: float) -> None:
        options = CompileOptions(view.audited, self._options.admin_tier, self._options.log)
        if self._compiler is None or options != self._compile_options:
            self._compiler, self._compile_options = PolicyCompiler(self._node, options), options
        # Attachments after the ticket was drawn: each of them that waits is among these.
        held = self._attachments.list()
        world = self._maker.make(view, held, self._leases)
        ruleset = self._compiler.update(world)
        compiled_at = self._clock()
        if is_empty(ruleset):
            is_written = self._is_there and self._table.remove()
            self._is_there = False
        else:
            if any(attachment.mode == BRIDGE for attachment in held):
                self._show_bridged()
            is_written = self._table.apply(guarded(ruleset))
            self._is_there = True
        self.world = world
        self.denials = dict(ruleset.denials)
        self._known = frozenset(map(str, self._maker.own_addresses)) if self._is_there else NONE
        self._status.update(
            policy=PolicyState(
                len(view.policies),
                len(isolated(ruleset)),
                compiled_at - begun_at,
                self._clock() - compiled_at,
                tuple(view.skipped),
                view.revision,
            )
        )
        if is_written:
            self._status.count(policy_applies=1)
            self._applied(world, options)

    def _report(self, error: str | None, ticket: int = 0) -> None:
        if error != self._status.get().policy_error:
            if error is not None:
                log.error("network policies: %s; what was in force stays so", error)
                self._status.events.note(Kind.POLICY_REFUSED, error)
            else:
                log.info("network policies are in force again")
            self._status.update(policy_error=error)
        # Last: who waits for it reads the status then.
        with self._changed:
            self._error = error
            if error is None:
                self._done = max(self._done, ticket)
            self._changed.notify_all()
