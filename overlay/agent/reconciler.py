"""One pass after another from (site, view) to the kernel; the only writer to it.

Events only wake it. A pass looks at what may differ: after one changed lease
at that lease's objects, after anything else at a whole dump.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from overlay.agent.doubts import FILTER, NEVER, SYSCTLS, Doubts, named
from overlay.agent.files import write_file
from overlay.agent.firewall import Firewall, PacketFilter
from overlay.agent.flags import Flags
from overlay.agent.hold import Hold
from overlay.agent.layer2 import Layer2
from overlay.agent.mirror import carry_over, is_foreign
from overlay.agent.notify import notify
from overlay.agent.pace import Pace
from overlay.agent.status import Bell, Mailbox, Status
from overlay.agent.subnet_file import SubnetFile
from overlay.kernel.base import Kernel, KernelError, OpFailure
from overlay.kernel.echoes import Echoes
from overlay.kernel.netlink import NetlinkKernel
from overlay.kernel.notices import Change, Notice
from overlay.kernel.reset import HELD_FILE
from overlay.model.event import Kind
from overlay.model.kernel import KernelObject, Key, Op, VxlanLink
from overlay.model.lease import Lease, LeaseView
from overlay.model.versioned import changed_keys
from overlay.plan.diff import difference
from overlay.plan.planner import Planner, Problem, Site
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

_RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_NEWS_RETRY_S: Final = 1.0  # the same for what the store says anew, while nothing can be read
_SHOWN: Final = 5  # failures and problems named one by one in the log
_SETTLE_PASSES: Final = 3  # dumps after a device was made anew


class Reconciler:
    """Keeps one node's kernel in step. ``run`` belongs to one thread."""

    def __init__(
        self,
        flags: Flags,
        status: Status,
        kernel: Callable[[], Kernel] = NetlinkKernel,
        firewall: PacketFilter | None = None,
        clock: Callable[[], float] = time.monotonic,
        bell: Bell | None = None,
        write: Callable[[Path, str], None] = write_file,
        layer2: Layer2 | None = None,
    ) -> None:
        self._flags = flags
        self._status = status
        self._make_kernel = kernel
        self._firewall = firewall if firewall is not None else Firewall()
        self._layer2 = layer2
        self._clock = clock
        self.bell: Bell = bell if bell is not None else threading.Event()
        self.sites: Mailbox[Site] = Mailbox(self.bell)
        self.views: Mailbox[LeaseView] = Mailbox(self.bell)
        self.plan_lock = threading.Lock()
        self.heartbeat = clock()
        self._planner: Planner | None = None
        self._view: LeaseView | None = None
        self._mirror: dict[Key, KernelObject] | None = None  # as of the last dump, with what we did
        self._settled: object = None  # the mark of a dump that was as wanted
        self._audit_at = 0.0
        self._failed_passes = 0
        self._failed_at = -NEVER
        self._problems: Mapping[str, Problem] = {}
        self._subnet_file = SubnetFile(flags.subnet_file, write)
        self._pace = Pace()
        self._doubts = Doubts(self._pace, self._is_lost, self._is_as_left)
        self._kernel: Kernel | None = None
        self.hold = Hold(flags.prune_limit, flags.state_dir / HELD_FILE, status, clock, write)
        self._leases: Mapping[str, Lease] | None = None  # those in the plan

    def run(self, stop: StopSignal) -> None:
        """Work until ``stop`` is set."""
        kernel = self._kernel = self._make_kernel()
        while not stop.is_set():
            self.bell.clear()
            self.heartbeat = self._clock()
            try:
                self._hear()
                self.reconcile(kernel)
            except KernelError as exc:
                self._mirror = None
                self._report((str(exc),))
            self.bell.wait(max(0.0, self._wake_at() - self._clock()))

    @property
    def echoes(self) -> Echoes | None:
        """Return by what our own changes are known; None before there is a kernel. Any thread."""
        return self._kernel.echoes if self._kernel is not None else None

    def tell(self, notices: Sequence[Notice]) -> None:
        """Leave what the kernel told; the monitor's thread calls it."""
        self._doubts.tell(notices)
        self.bell.set()

    def _wake_at(self) -> float:
        if self._leases is None:  # nothing is planned yet, so nothing else can be due
            return self._audit_at
        doubts = self._doubts
        return min(self._audit_at, doubts.filter_at, doubts.forward_at, self.hold.due_at)

    def _hear(self) -> None:
        underlay = self._planner.site.underlay.device if self._planner is not None else ""
        if self._doubts.hear(self._clock(), self._mirror, underlay):
            log.warning("the kernel told more than could be read; everything is looked at anew")
            self._status.count(notice_losses=1)
        self._audit_at = min(self._audit_at, self._doubts.look_at)

    def _is_lost(self, notice: Change) -> bool:
        return self._layer2 is not None and self._layer2.is_lost(notice)

    def _is_as_left(self, keys: Iterable[Key]) -> bool:
        if self._kernel is None or self._mirror is None:
            return False
        devices = {device.key: device for device in self._kernel.devices()}
        return all(devices.get(key) == self._mirror.get(key) for key in keys)

    def _check_filter(self, site: Site) -> None:
        errors = self._filter(site, audit=True)
        begun_at = self._clock()
        if self._layer2 is not None:
            errors += self._layer2.audit_rules()
        self._doubts.rest(begun_at, self._clock())
        if errors:
            self._report(errors, is_whole=False)

    def _check_forward(self, site: Site) -> None:
        begun_at = self._clock()
        errors = self._surroundings(site, is_new=False)
        self._doubts.rest(begun_at, self._clock())
        if errors:
            self._report(errors, is_whole=False)

    def desired(self) -> Sequence[KernelObject]:
        """Return what the agent wants in the kernel now; any thread may ask."""
        with self.plan_lock:
            return () if self._planner is None else list(self._planner.plan.objects.values())

    def layer2_differences(self) -> Sequence[str]:
        """Return what the bridge lacks, in words; any thread may ask. Raises OverlayError."""
        site = self.sites.get()
        if site is None or self._layer2 is None:
            return ()
        return self._layer2.differences(site.own.subnet, site.backend.mtu(site.underlay))

    def reconcile(self, kernel: Kernel) -> None:
        """Make one pass. Raises KernelError when the kernel cannot be read or written at all."""
        site, view = self.sites.get(), self.views.get()
        now = self._clock()
        if site is None or view is None:
            self._audit_at = now + self._flags.audit_interval_s
            return
        leases = self.hold.leases(view.leases, site.own.subnet.key)
        is_current = self._is_current(site, view, leases)
        if self._mirror is None and not is_current:
            # News does not wait for the backoff to end, nor does much of it undo the backoff.
            self._audit_at = min(self._audit_at, self._failed_at + _NEWS_RETRY_S)
        is_audit = now >= self._audit_at
        is_in_doubt, is_shut = self._doubts.take_filter(now), self._doubts.take_forward(now)
        if not is_audit and (is_current or self._mirror is None):
            if is_in_doubt and is_current:
                self._check_filter(site)
            if is_shut and is_current:
                self._check_forward(site)
            return
        touched = self._plan(site, view, leases)
        if touched is None:
            is_audit = True
        errors: list[str] = []
        if touched is None:  # a new site: the filter stands before the first packet can pass
            errors += self._filter(site, audit=True)
        failures = self._touch(kernel, touched) if not is_audit and touched else ()
        if is_audit:
            failures = self._settle(kernel)
        if is_audit or is_shut:
            errors += self._surroundings(site, is_new=touched is None)
        if touched is not None:
            errors += self._filter(site, audit=is_audit or is_in_doubt)
        errors += self._subnet_file.tell(site)
        self._finish(failures, errors, self._clock() - now, is_whole=is_audit)

    def _is_current(self, site: Site, view: LeaseView, leases: Mapping[str, Lease]) -> bool:
        is_planned = self._planner is not None and self._planner.site is site
        return is_planned and self._view is view and self._leases is leases

    def _plan(self, site: Site, view: LeaseView, leases: Mapping[str, Lease]) -> set[Key] | None:
        """Bring the plan in step; return the keys touched, None where all may be."""
        with self.plan_lock:
            is_new = self._planner is None or self._planner.site is not site
            if is_new or self._planner is None:
                self._planner = Planner(site)
            touched = self._planner.update(leases)
        self._view, self._leases = view, leases
        if is_new or touched:
            self._settled = None
        return None if is_new else touched

    def _settle(self, kernel: Kernel) -> tuple[OpFailure, ...]:
        """Compare with a whole dump; devices first, and then with what they hold."""
        if self._is_settled(kernel):
            self._audit_at = self._clock() + self._flags.audit_interval_s
            return ()
        assert self._planner is not None  # noqa: S101 - by _plan
        failures: tuple[OpFailure, ...] = ()
        left, makers = self._mirror, self._doubts.looked()
        for left_passes in reversed(range(_SETTLE_PASSES)):
            wanted = self._planner.plan.objects
            observed = {item.key: item for item in kernel.dump(wanted)}
            ops = difference(wanted, observed)
            self._mirror = observed
            if left is not None:
                self._name_repair([op for op in ops if is_foreign(op, left, self._mirror)], makers)
            left = None
            self._settled = kernel.mark
            devices = [op for op in ops if isinstance(op.target, VxlanLink)]
            made = [op for op in devices if op.verb == "set"]
            # What is on a device that is made or changed is seen afterwards, and then set once.
            failures = self._carry_out(kernel, made if made and left_passes else ops)
            if not devices:
                break
        self._audit_at = self._clock() + self._flags.audit_interval_s
        return failures

    def _is_settled(self, kernel: Kernel) -> bool:
        """Return whether the kernel is as it was when nothing was to be done; nothing is decoded.

        Where a notice raised a doubt, or the plan changed, that is not asked.
        """
        if self._mirror is None or self._settled is None or self._doubts.look_at != NEVER:
            return False
        return kernel.look() == self._settled

    def _name_repair(self, ops: Sequence[Op], makers: Mapping[Key, str]) -> None:
        if not ops:
            return
        by = [makers.get(op.target.key, "") for op in ops]
        shown = ", ".join(str(op) for op in ops[:2]) + (", ..." if len(ops) > 2 else "")
        repairs = {
            op.target.key: f"{op.target}{named([maker])}" for op, maker in zip(ops, by, strict=True)
        }
        self._repaired(f"{len(ops)} of our kernel objects ({shown}){named(by)}", repairs)

    def _repaired(self, what: str, repairs: Mapping[Key, str]) -> None:
        """Say that somebody changed what is ours; ``repairs`` has a text for each object."""
        now = self._clock()
        pause_s = self._pace.repaired(now, repairs)
        later = f", next not before {pause_s:g} s" if pause_s > 1 else ""
        text = f"somebody else changed {what}; put right{later}"
        log.warning("%s", text)
        self._status.events.note(Kind.DRIFT_REPAIRED, text, objects=list(repairs.values()))
        self._status.count(repairs=len(repairs))
        self._status.update(fights=tuple(self._pace.contested(now)))

    def _touch(self, kernel: Kernel, touched: set[Key]) -> tuple[OpFailure, ...]:
        """Compare the touched objects alone with what the last dump and our own writes say."""
        assert self._planner is not None  # noqa: S101 - by _plan
        assert self._mirror is not None  # noqa: S101 - by reconcile
        objects, mirror = self._planner.plan.objects, self._mirror
        ops = difference(
            {key: objects[key] for key in touched if key in objects},
            {key: mirror[key] for key in touched if key in mirror},
        )
        return self._carry_out(kernel, ops)

    def _carry_out(self, kernel: Kernel, ops: Sequence[Op]) -> tuple[OpFailure, ...]:
        if not ops:
            return ()
        self._settled = None
        failures = kernel.apply(ops)
        failed = {failure.op for failure in failures}
        mirror = self._mirror if self._mirror is not None else {}
        carry_over(mirror, ops, failed)
        self._status.count(ops=len(ops), op_failures=len(failures))
        if len(ops) <= _SHOWN:
            for op in ops:
                log.info("%s", op)
        else:
            sets = sum(op.verb == "set" for op in ops)
            log.info("set %d and deleted %d kernel objects", sets, len(ops) - sets)
        return failures

    def _filter(self, site: Site, *, audit: bool) -> tuple[str, ...]:
        assert self._planner is not None  # noqa: S101 - by _plan
        plan = self._planner.plan
        is_direct = site.backend.tunnel is None or plan.routes_to[site.underlay.device] > 0
        told = self._doubts.looked_at_filter() if audit else []
        begun_at = self._clock()
        outcome = self._firewall.filter(
            site,
            plan.addresses(),
            direct=is_direct,
            audit=audit,
            told=[each.generation for each in told],
        )
        if audit and not outcome.repairs:  # else the pace of repairs says when to look again
            self._doubts.rest(begun_at, self._clock())
        self._status.count(ruleset_applies=outcome.applied)
        if outcome.applied:
            self._status.events.note(Kind.RULESET_APPLIED, "table inet overlay is in step")
        others = [each.by for each in told if each.generation in outcome.foreign]
        for text in outcome.repairs:
            self._repaired(text + named(others), {FILTER: text + named(others)})
        return outcome.errors

    def _surroundings(self, site: Site, *, is_new: bool) -> tuple[str, ...]:
        outcome = self._firewall.surroundings(site, self._flags.checksum_offload)
        if outcome.repairs and not is_new:
            text = ", ".join(outcome.repairs)
            self._repaired(text, {SYSCTLS: text})
        known = self._status.get().warnings
        for text in outcome.warnings:
            if text not in known:
                log.warning("%s", text)
        self._status.update(warnings=outcome.warnings)
        if self._layer2 is None:
            return outcome.errors
        mtu = site.backend.mtu(site.underlay)
        return (*outcome.errors, *self._layer2.audit(site.own.subnet, mtu))

    def _finish(
        self,
        failures: Sequence[OpFailure],
        errors: Sequence[str],
        elapsed_s: float,
        *,
        is_whole: bool,
    ) -> None:
        assert self._planner is not None  # noqa: S101 - by _plan
        plan = self._planner.plan
        known, problems = self._problems, plan.problems
        self._problems = problems
        new = (problems[key] for key in changed_keys(known, problems) if key in problems)
        for problem in islice((each for each in new if known.get(each.about) != each), _SHOWN * 4):
            log.warning("%s; it is left out, the other peers are not touched", problem.text)
        self._status.count(passes=1)
        site = self._planner.site
        self._status.update(
            site=site,
            view=self._view,
            problems=problems,
            peers=len(plan.peers),
            mtu=site.backend.mtu(site.underlay),
            last_pass_s=elapsed_s,
        )
        self._status.timings.passes.observe(elapsed_s)
        self._status.events.bell.set()  # the recorder sees what became of the peers
        texts = [str(failure) for failure in failures]
        self._report((*shortened(texts), *errors), is_whole=is_whole)

    def _report(self, errors: tuple[str, ...], *, is_whole: bool = True) -> None:
        """Tell what failed and when to try again; what a part of a pass did not look at stays."""
        before = self._status.get()
        new = [text for text in errors if text not in before.kernel_errors]
        for text in new:
            log.error("%s", text)
            self._status.events.note(Kind.KERNEL_REFUSED, text)
        if is_whole and not errors:
            self._failed_passes = 0
        elif is_whole or new:
            self._failed_at = self._clock()
            delay_s = _RETRY_S[min(self._failed_passes, len(_RETRY_S) - 1)]
            self._failed_passes += 1
            retry_at = self._failed_at + delay_s
            self._audit_at = retry_at if is_whole else min(self._audit_at, retry_at)
        if not is_whole:
            errors = (*before.kernel_errors, *new)
        self._status.update(kernel_errors=errors)
        self._status.programmed()
        after = self._status.get()
        if after.is_ready and not before.is_ready:
            subnet = after.site.own.subnet if after.site is not None else "?"
            log.info("ready: %d peers, subnet %s", after.peers, subnet)
            self._status.events.note(Kind.AGENT_READY, f"{after.peers} peers, subnet {subnet}")
            notify("READY=1", f"STATUS=subnet {subnet}")


def shortened(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the first few texts, and how many there are more."""
    more = len(texts) - _SHOWN
    return (*texts[:_SHOWN], *([f"and {more} more"] if more > 0 else []))
