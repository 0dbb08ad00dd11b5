"""Network policies as one part of the agent: what runs, what is answered, shown and counted."""

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from overlay.agent.attachments import Attachments
from overlay.agent.policy_audit import TableAudit
from overlay.agent.policy_cutter import ConnectionCutter
from overlay.agent.policy_denied import DenialCounts, DenialLog
from overlay.agent.policy_enforcer import PolicyEnforcer, PolicyOptions
from overlay.agent.policy_flags import PolicyFlags
from overlay.agent.policy_publisher import PodPublisher
from overlay.agent.status import Status
from overlay.kernel.nft_generation import OwnWrites
from overlay.kernel.nft_policy import NftPolicyTable
from overlay.kernel.notices import OVERFLOW, Notice, RulesetChange
from overlay.model.attachment import Attachment
from overlay.model.lease import LeaseView
from overlay.model.netpol import World
from overlay.model.node import NodeIdentity
from overlay.model.policy_view import PolicyView
from overlay.policy.network.compile import CompileOptions
from overlay.policy.network.render import LogOptions
from overlay.policy.network.table import POLICY_TABLE, Denial
from overlay.store.base import PermissionMissingError, StopSignal, StoreError
from overlay.store.policy_source import PolicySource

if TYPE_CHECKING:
    from prometheus_client.core import Metric

log = logging.getLogger(__name__)

_SITE_S: Final = 1.0  # how late a stop may be noticed while the node has no lease


class PolicyPart:
    """The gate that attaching passes, and the threads behind it."""

    def __init__(
        self,
        flags: PolicyFlags,
        node: NodeIdentity,
        attachments: Attachments,
        status: Status,
        store: PolicySource,
        own: OwnWrites,
    ) -> None:
        self._status, self._store = status, store
        options = LogOptions(flags.log_group) if flags.log_group else None
        self._table = NftPolicyTable(own=own)
        self.cutter = ConnectionCutter(
            node.name, attachments, status, keeps=flags.keeps_established
        )
        self.enforcer = PolicyEnforcer(
            node.name,
            attachments,
            status,
            self._table,
            PolicyOptions(options, flags.admin_tier),
            applied=self._applied,
            pod=store.pod,
        )
        written = store.writable()
        self._publisher = (
            PodPublisher(node, attachments, status, written, self._has_policies)
            if written is not None
            else None
        )
        self._audit = TableAudit(
            self._table.difference, lambda found: self.enforcer.doubt([found]), self.enforcer.check
        )
        self._counts = DenialCounts(NftPolicyTable().counters)
        self._counting = threading.Lock()
        self._log = (
            DenialLog(options, status, lambda: self.enforcer.world, lambda: self.enforcer.denials)
            if options is not None
            else None
        )

    def threads(
        self, stop: StopSignal, beat: Callable[[], StopSignal]
    ) -> dict[str, Callable[[], None]]:
        """Return what runs, by the name of its thread.

        ``beat`` returns the signal by which the thread of the watch shows that it lives.
        """
        runs: dict[str, Callable[[StopSignal], None]] = {
            "policy": self.enforcer.run,
            "policy-audit": self._audit.run,
            "policy-watch": lambda _stop: self._watch(beat()),
            "policy-cut": self.cutter.run,
        }
        if self._publisher is not None:
            runs["policy-pods"] = self._publisher.run
        if self._log is not None:
            runs["policy-log"] = self._log.run
        return {name: functools.partial(run, stop) for name, run in runs.items()}

    def admit(self, attachment: Attachment) -> None:
        """Return once a pod that is about to start is judged by its policies. See PolicyGate."""
        self._publish()
        self.cutter.admit(attachment)
        self.enforcer.admit(attachment)

    def wake(self) -> None:
        """Look at the node's pods again."""
        self._publish()
        self.enforcer.wake()
        self.cutter.wake()

    def follow(self, view: LeaseView) -> None:
        """Keep the pods bound to the node's own lease, and what is about nodes in step."""
        if self._publisher is not None:
            self._publisher.follow(view)
        self.enforcer.follow(view)

    def tell(self, notices: Sequence[Notice]) -> None:
        """Have the table looked at where somebody touched it, or may have."""
        touched = [n for n in notices if isinstance(n, RulesetChange) and POLICY_TABLE in n.tables]
        if touched:
            self.enforcer.doubt(touched)
        if OVERFLOW in notices:
            self._audit.wake()

    def calls(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """Return what the node's socket answers."""
        return {"policy": lambda _given: self._shown()}

    def denied(self) -> list[tuple[Denial, int]]:
        """Return the packets that were refused since the start, by who refused them."""
        with self._counting:
            return self._counts.look(self.enforcer.denials)

    def families(self) -> "Iterable[Metric]":
        """Yield what is counted, for metrics."""
        from overlay.agent.policy_metrics import policy_families

        return policy_families(self._status, self.denied)

    def _publish(self) -> None:
        if self._publisher is not None:
            self._publisher.wake()

    def _applied(self, world: World, options: CompileOptions) -> None:
        self.cutter.judge(world, options)

    def _has_policies(self) -> bool:
        state = self._status.get().policy
        return state is not None and state.policies > 0

    def _watch(self, stop: StopSignal) -> None:
        # A node that is refused its place in the fabric is left as it was found.
        while self._status.wait_for(lambda it: it.site is not None, _SITE_S).site is None:
            if stop.is_set():
                return
        self._store.watch(self._deliver, self._trouble, stop)

    def _deliver(self, view: PolicyView) -> None:
        self._status.update(policy_trouble=None)
        if self._publisher is not None:
            self._publisher.compare(view)
        self.enforcer.put(view)

    def _trouble(self, error: StoreError | None) -> None:
        text = None if error is None else str(error)
        if text is not None and text != self._status.get().policy_trouble:
            log.warning("policies: %s; those that were seen last stay in force", text)
        if isinstance(error, PermissionMissingError):
            self.enforcer.lack()
        self._status.update(policy_trouble=text)

    def _shown(self) -> dict[str, Any]:
        state = self._status.get().policy
        return {
            "policies": state.policies if state is not None else 0,
            "isolated": state.isolated if state is not None else 0,
            "denied": [
                {
                    "policies": list(denial.policies),
                    "direction": denial.direction.value if denial.direction else None,
                    "audited": denial.audited,
                    "packets": packets,
                }
                for denial, packets in self.denied()
            ],
        }
