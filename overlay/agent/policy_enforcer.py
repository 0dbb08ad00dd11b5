"""The node's policies in its kernel: compiled, applied as one transaction, kept in step.

One thread writes. An ADD whose pod a policy isolates waits here until the
kernel judges the pod's packets; all others go on at once. What nft refuses
leaves the table that is there, and the node is not ready until it is mended.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from overlay.agent.attachments import Attachments
from overlay.agent.doubts import NEVER, named
from overlay.agent.pace import Pace
from overlay.agent.policy_pods import is_meant, is_of_kubernetes, pod_key, pod_links, told
from overlay.agent.policy_world import NOBODY, NOTHING, NodeAddresses, Selecting, WorldMaker
from overlay.agent.status import PolicyState, Status
from overlay.kernel.base import KernelError
from overlay.kernel.bridge_frames import show_bridged_frames
from overlay.kernel.notices import RulesetChange
from overlay.model.address import IPAddress
from overlay.model.attachment import BRIDGE, Attachment
from overlay.model.errors import OverlayError
from overlay.model.event import Kind
from overlay.model.kernel import Key
from overlay.model.lease import LeaseView
from overlay.model.netpol import Pod, PodKey, World
from overlay.model.policy_view import PolicyView
from overlay.policy.network.compile import CompileOptions, PolicyCompiler
from overlay.policy.network.links import with_links
from overlay.policy.network.midway import TRACKING, guarded, is_empty, isolated
from overlay.policy.network.render import LogOptions
from overlay.policy.network.table import POLICY_TABLE, Denial, PolicyRuleset
from overlay.store.base import StopSignal, StoreError

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


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """How policies are enforced; ``log`` is None where refused packets are counted alone."""

    log: LogOptions | None = None
    admin_tier: bool = False


class PolicyEnforcer:
    """``admit``, ``wake``, ``tell`` and ``put`` are for any thread, ``run`` is one of its own.

    ``pod`` asks the source for one pod; it raises StoreError. ``applied`` is
    called in that thread after each change of the table, with the world that it
    was made of.
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
        show_bridged: Callable[[], bool] = show_bridged_frames,
        pod: Callable[[PodKey], Pod | None] = lambda _: None,
    ) -> None:
        self._attachments, self._status, self._table = attachments, status, table
        self._options, self._clock, self._applied = options, clock, applied
        self._node, self._show_bridged, self._pod = node, show_bridged, pod
        self._maker = WorldMaker(node)
        self._compiler: PolicyCompiler | None = None
        self._compile_options = CompileOptions()
        self._changed = threading.Condition()
        self._asked = self._done = 0  # tickets: what is asked for, what is in force
        self._view: PolicyView | None = None
        self._leases: LeaseView | None = None
        self._nodes = NodeAddresses()  # of these leases, or of earlier ones while nobody asks
        self._selecting = Selecting(NOTHING)
        self._known: frozenset[str] = frozenset()  # addresses that the table tells apart
        # Pods that were asked for, each with what the view had of its name instead.
        self._asked_for: dict[PodKey, tuple[Pod, Pod | None]] = {}
        self._is_off = False  # there is no view, and none is to be had
        self._error: str | None = None
        self._failures = 0
        self._pace = Pace()
        self._has_bridged = False
        self._tried = 0  # the last ticket that was taken up, whatever became of it
        self._retry_at = self._repair_at = NEVER
        self._doubts: deque[RulesetChange | str] = deque()
        self._is_there = True  # rules about pods, perhaps: some may be left from before
        self.world = World()
        self.denials: dict[str, Denial] = {}

    def put(self, view: PolicyView) -> None:
        """Leave what the source holds now."""
        with self._changed:
            self._view, self._is_off = view, False
            self._asked_for = {
                key: (pod, instead)
                for key, (pod, instead) in self._asked_for.items()
                if view.pods.get(key) == instead
            }
            self._selecting = Selecting(view, self._options.admin_tier)
            self._ask()

    def lack(self) -> None:
        """Note that this account may not read policies: as long as none were seen, none are asked.

        A cluster whose role says nothing of policies has its pods without them
        rather than no pods. What was seen once stays in force.
        """
        with self._changed:
            self._is_off = self._view is None
            self._changed.notify_all()

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
                before = self._nodes.found
                if self._node_addresses() is not before:
                    self._ask()

    def doubt(self, doubts: Iterable[RulesetChange | str]) -> None:
        """Have the table written anew where ``doubts`` are not about our own writes.

        Each is a transaction that touched it, or says what of it is found changed.
        """
        with self._changed:
            self._doubts.extend(doubts)
            self._changed.notify_all()

    def check(self) -> None:
        """Have frames between ports of a bridge shown, where somebody turned that off.

        Its settings raise no notice. Raises KernelError.
        """
        if self._is_there and self._has_bridged and self._show_bridged():
            text = "somebody hid bridged frames from the filters; they are shown again"
            log.warning("%s", text)
            self._status.events.note(Kind.DRIFT_REPAIRED, text)
            self._status.count(repairs=1)

    def admit(self, attachment: Attachment) -> None:
        """Return once the kernel judges the packets of a pod that is about to start.

        At once where no policy is about it. Raises PolicyNotInForceError.
        """
        deadline = self._clock() + _WAIT_S
        with self._changed:
            if not self._changed.wait_for(lambda: self._view is not None or self._is_off, _WAIT_S):
                msg = "the policies are not known yet: the store has not answered since the start"
                raise PolicyNotInForceError(msg)
            if self._view is None or self._is_idle:
                return
        self._ask_for(attachment)
        with self._changed:
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

    def _node_addresses(self) -> Mapping[str, frozenset[IPAddress]]:
        """Return the addresses of each node, the same object while they are; with the lock held."""
        # Without a policy nobody asks what nodes send from, and it is 200 bytes of each.
        view = self._leases
        self._nodes.follow(NOBODY if view is None or self._selecting.is_idle else view.leases)
        return self._nodes.found

    @property
    def _is_idle(self) -> bool:
        """Return whether there is no policy, and no rule about pods: then none changes anything.

        To look at all pods for each that comes or goes cost a third of attaching it.
        """
        return self._selecting.is_idle and not self._is_there

    def _must_wait(self, attachment: Attachment) -> bool:
        """Return whether rules are about the pod, or were about another with its address."""
        if self._selecting.is_idle and not self._known:
            return False
        key, labels = pod_key(attachment), attachment.labels
        if self._view is not None and self._view.knows_pods and is_of_kubernetes(attachment):
            pod = self._told(self._view, attachment)
            if pod is None and self._selecting.concerns(key[0]):
                return True
            labels = pod.labels if pod is not None else labels
        if self._selecting.isolates(key, labels):
            return True
        return any(str(address) in self._known for address in attachment.addresses)

    def _told(self, view: PolicyView, attachment: Attachment) -> Pod | None:
        """Return the pod that the attachment is of, where the source told of it."""
        pod = told(view, self._answers, pod_key(attachment))
        return pod if pod is not None and is_meant(pod, attachment, self._node) else None

    @property
    def _answers(self) -> dict[PodKey, Pod]:
        return {key: pod for key, (pod, _) in self._asked_for.items()}

    def _ask_for(self, attachment: Attachment) -> None:
        """Have the source tell of a pod that starts sooner than the view has it.

        Raises PolicyNotInForceError where it cannot: which policies select the
        pod is not known then.
        """
        view, key = self._view, pod_key(attachment)
        if view is None or not view.knows_pods or not is_of_kubernetes(attachment):
            return
        if not self._selecting.concerns(key[0]) or self._told(view, attachment) is not None:
            return
        try:
            pod = self._pod(key)
        except StoreError as exc:
            msg = f"which of them select pod {'/'.join(key)} cannot be known: {exc}"
            raise PolicyNotInForceError(f"network policies are not in force: {msg}") from exc
        with self._changed:
            instead = view.pods.get(key)
            if pod is not None and self._view is not None and self._view.pods.get(key) == instead:
                self._asked_for[key] = (pod, instead)

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
        with self._changed:
            there = {pod_key(attachment) for attachment in held} if self._asked_for else set()
            self._asked_for = {k: each for k, each in self._asked_for.items() if k in there}
            asked, selecting = self._answers, self._selecting
            nodes = self._node_addresses()
        world = self._maker.make(view, held, nodes, selecting, asked)
        ruleset = self._compiler.update(world, self._maker.unknown)
        compiled_at = self._clock()
        if is_empty(ruleset):
            is_written = self._table.apply(TRACKING) and self._is_there
            self._is_there = False
        else:
            has_bridged = any(attachment.mode == BRIDGE for attachment in held)
            if has_bridged:
                self._show_bridged()
            self._has_bridged = has_bridged
            ruleset = guarded(with_links(ruleset, pod_links(held)), self._options.log)
            is_written = self._table.apply(ruleset)
            self._is_there = True
        self.world = world
        self.denials = dict(ruleset.denials)
        self._known = frozenset(map(str, self._maker.own_addresses)) if self._is_there else NONE
        self._status.update(
            policy=PolicyState(
                len(world.policies) + self._options.admin_tier * len(world.cluster_policies),
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
