"""One pass after another from (site, view) to the kernel; the only writer to it.

Events only wake it. A pass looks at what may differ: after one changed lease
at that lease's objects, after anything else at a whole dump.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from overlay.agent.files import format_subnet_file, write_file
from overlay.agent.firewall import Firewall, PacketFilter
from overlay.agent.flags import Flags
from overlay.agent.notify import notify
from overlay.agent.status import PROGRAMMING, RUNNING, Bell, Counters, Mailbox, Status
from overlay.kernel.base import Kernel, KernelError, OpFailure
from overlay.kernel.monitor import OVERFLOW, RULESET, SYSCTL, Notice, is_news
from overlay.kernel.netlink import NetlinkKernel
from overlay.model.kernel import KernelObject, Key, Op, VxlanLink
from overlay.model.lease import LeaseView
from overlay.plan.diff import diff
from overlay.plan.planner import Planner, Site
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

_RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SHOWN: Final = 5  # failures and problems named one by one in the log
_QUIET_S: Final = 30.0  # without a repair, after which the next one is made at once again
_PATIENCE: Final = 5  # repairs of one object in that time before they are made later
_PAUSE_MOST_S: Final = 10.0  # between repairs, against one who keeps on changing
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
    ) -> None:
        self._flags = flags
        self._status = status
        self._make_kernel = kernel
        self._firewall = firewall if firewall is not None else Firewall()
        self._clock = clock
        self._write = write
        self.bell: Bell = bell if bell is not None else threading.Event()
        self.sites: Mailbox[Site] = Mailbox(self.bell)
        self.views: Mailbox[LeaseView] = Mailbox(self.bell)
        self.plan_lock = threading.Lock()
        self.heartbeat = clock()
        self._planner: Planner | None = None
        self._view: LeaseView | None = None
        self._mirror: dict[Key, KernelObject] | None = None  # as of the last dump, with what we did
        self._audit_at = 0.0
        self._failed_passes = 0
        self._named: set[str] = set()
        self._file = ""
        self.netlink_port = 0  # of the kernel's socket, once there is one
        self._notices: deque[Notice] = deque()
        self._is_filter_in_doubt = False
        self._is_repair = False
        self._pace = Pace()

    def run(self, stop: StopSignal) -> None:
        """Work until ``stop`` is set."""
        kernel = self._make_kernel()
        self.netlink_port = kernel.port
        while not stop.is_set():
            self.bell.clear()
            self.heartbeat = self._clock()
            try:
                self._hear()
                self.reconcile(kernel)
            except KernelError as exc:
                self._mirror = None
                self._report((str(exc),))
            self.bell.wait(max(0.0, self._audit_at - self._clock()))

    def tell(self, notices: Sequence[Notice]) -> None:
        """Leave what the kernel told; the monitor's thread calls it."""
        self._notices.extend(notices)
        self.bell.set()

    def _hear(self) -> None:
        """Judge what was told: our own changes coming back, or somebody else's."""
        mirror = self._mirror
        doubtful: set[Key] = set()
        while self._notices:
            notice = self._notices.popleft()
            if notice == RULESET:
                self._is_filter_in_doubt = True
            elif isinstance(notice, str):
                doubtful |= {(notice,)} if notice in {OVERFLOW, SYSCTL} else set()
            elif mirror is not None and is_news(notice, mirror):
                doubtful.add(notice[1])
        if doubtful and mirror is not None:
            now = self._clock()
            soonest = min(self._pace.next_at(now, key) for key in doubtful)
            self._audit_at = min(self._audit_at, soonest)
            self._is_repair = True

    def _check_filter(self, site: Site) -> None:
        self._is_filter_in_doubt = False
        errors = self._filter(site, audit=True)
        if errors:
            self._report(errors)

    def desired(self) -> Sequence[KernelObject]:
        """Return what the agent wants in the kernel now; any thread may ask."""
        with self.plan_lock:
            return () if self._planner is None else list(self._planner.plan.objects.values())

    def reconcile(self, kernel: Kernel) -> None:
        """Make one pass. Raises KernelError when the kernel cannot be read or written at all."""
        site, view = self.sites.get(), self.views.get()
        now = self._clock()
        if site is None or view is None:
            self._audit_at = now + self._flags.audit_interval_s
            return
        is_audit = now >= self._audit_at or self._mirror is None
        if not is_audit and self._is_current(site, view):
            if self._is_filter_in_doubt:
                self._check_filter(site)
            return
        is_in_doubt, self._is_filter_in_doubt = self._is_filter_in_doubt, False
        touched = self._plan(site, view)
        if touched is None:
            is_audit = True
        errors: list[str] = []
        if touched is None:  # a new site: the filter stands before the first packet can pass
            errors += self._filter(site, audit=True)
        failures = self._touch(kernel, touched) if not is_audit and touched else ()
        if is_audit:
            failures = self._settle(kernel)
            errors += self._surroundings(site)
        if touched is not None:
            errors += self._filter(site, audit=is_audit or is_in_doubt)
        errors += self._write_subnet_file(site)
        self._finish(failures, errors, self._clock() - now)

    def _is_current(self, site: Site, view: LeaseView) -> bool:
        return self._planner is not None and self._planner.site is site and self._view is view

    def _plan(self, site: Site, view: LeaseView) -> set[Key] | None:
        """Bring the plan in step; return the keys touched, None where all may be."""
        with self.plan_lock:
            is_new = self._planner is None or self._planner.site is not site
            if is_new or self._planner is None:
                self._planner = Planner(site)
            touched = self._planner.update(view.leases)
        self._view = view
        return None if is_new else touched

    def _settle(self, kernel: Kernel) -> tuple[OpFailure, ...]:
        """Compare with a whole dump, and again while devices are made anew."""
        failures: tuple[OpFailure, ...] = ()
        for _ in range(_SETTLE_PASSES):
            observed = kernel.dump()
            self._mirror = {item.key: item for item in observed}
            ops = diff(self.desired(), observed)
            if self._is_repair and ops:
                self._name_repair(ops)
            self._is_repair = False
            failures = self._carry_out(kernel, ops)
            if not any(isinstance(op.target, VxlanLink) for op in ops):
                break
        self._audit_at = self._clock() + self._flags.audit_interval_s
        return failures

    def _name_repair(self, ops: Sequence[Op]) -> None:
        pause_s = self._pace.repaired(self._clock(), [op.target.key for op in ops])
        log.warning(
            "somebody else changed %d of our kernel objects (%s); put right%s",
            len(ops),
            ", ".join(str(op.target) for op in ops[:2]) + (", ..." if len(ops) > 2 else ""),
            f", next not before {pause_s:g} s" if pause_s > 1 else "",
        )
        self._count(repairs=self._status.get().counters.repairs + len(ops))

    def _touch(self, kernel: Kernel, touched: set[Key]) -> tuple[OpFailure, ...]:
        """Compare the touched objects alone with what the last dump and our own writes say."""
        assert self._planner is not None  # noqa: S101 - by _plan
        assert self._mirror is not None  # noqa: S101 - by reconcile
        objects, mirror = self._planner.plan.objects, self._mirror
        ops = diff(
            [objects[key] for key in touched if key in objects],
            [mirror[key] for key in touched if key in mirror],
        )
        return self._carry_out(kernel, ops)

    def _carry_out(self, kernel: Kernel, ops: Sequence[Op]) -> tuple[OpFailure, ...]:
        if not ops:
            return ()
        failures = kernel.apply(ops)
        failed = {failure.op for failure in failures}
        mirror = self._mirror if self._mirror is not None else {}
        for op in ops:
            if op in failed:
                continue
            if op.verb == "set":
                mirror[op.target.key] = op.target
            else:
                mirror.pop(op.target.key, None)
        counters = self._status.get().counters
        self._count(ops=counters.ops + len(ops), op_failures=counters.op_failures + len(failures))
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
        outcome = self._firewall.filter(site, plan.addresses(), direct=is_direct, audit=audit)
        if outcome.applied:
            self._count(ruleset_applies=self._status.get().counters.ruleset_applies + 1)
        return outcome.errors

    def _surroundings(self, site: Site) -> tuple[str, ...]:
        outcome = self._firewall.surroundings(site)
        known = self._status.get().warnings
        for text in outcome.warnings:
            if text not in known:
                log.warning("%s", text)
        self._status.update(warnings=outcome.warnings)
        return outcome.errors

    def _finish(
        self, failures: Sequence[OpFailure], errors: Sequence[str], elapsed_s: float
    ) -> None:
        assert self._planner is not None  # noqa: S101 - by _plan
        plan = self._planner.plan
        problems = tuple(plan.problems.values())
        for problem in problems[: _SHOWN * 4]:
            if problem.text not in self._named:
                log.warning("%s; it is left out, the other peers are not touched", problem.text)
        self._named = {problem.text for problem in problems}
        counters = self._status.get().counters
        self._count(passes=counters.passes + 1, last_pass_s=elapsed_s)
        site = self._planner.site
        self._status.update(
            site=site,
            view=self._view,
            problems=problems,
            peers=len(plan.peers),
            mtu=site.backend.mtu(site.underlay),
        )
        texts = [str(failure) for failure in failures]
        self._report((*shortened(texts), *errors))

    def _report(self, errors: tuple[str, ...]) -> None:
        before = self._status.get()
        for text in errors:
            if text not in before.kernel_errors:
                log.error("%s", text)
        if errors:
            delay = _RETRY_S[min(self._failed_passes, len(_RETRY_S) - 1)]
            self._failed_passes += 1
            self._mirror = None
            self._audit_at = self._clock() + delay
        else:
            self._failed_passes = 0
        phase = RUNNING if before.phase == PROGRAMMING else before.phase
        after = self._status.update(kernel_errors=errors, phase=phase)
        if after.is_ready and not before.is_ready:
            subnet = after.site.own.subnet if after.site is not None else "?"
            log.info("ready: %d peers, subnet %s", after.peers, subnet)
            notify("READY=1", f"STATUS=subnet {subnet}")

    def _count(self, **changes: float) -> None:
        counters: Counters = replace(self._status.get().counters, **changes)  # type: ignore[arg-type]
        self._status.update(counters=counters)

    def _write_subnet_file(self, site: Site) -> list[str]:
        mtu = site.backend.mtu(site.underlay)
        text = format_subnet_file(site.config, site.own.subnet, mtu)
        if text == self._file:
            return []
        try:
            self._write(self._flags.subnet_file, text)
        except OSError as exc:
            return [f"--subnet-file {self._flags.subnet_file}: {exc.strerror}"]
        self._file = text
        return []


class Pace:
    """How soon to repair an object again: at once, but ever later where somebody fights for it."""

    def __init__(self) -> None:
        self._fights: dict[Key, tuple[float, int]] = {}  # when it was last repaired, how often

    def next_at(self, now: float, key: Key) -> float:
        """Return when the object may be repaired."""
        last, times = self._fights.get(key, (now, 0))
        return max(now, last + _pause_s(times))

    def repaired(self, now: float, keys: Iterable[Key]) -> float:
        """Note a repair; return the longest pause that now begins, in seconds."""
        recent = {k: (t, n) for k, (t, n) in self._fights.items() if now - t < _QUIET_S}
        counted = {key: (now, recent.get(key, (now, 0))[1] + 1) for key in keys}
        self._fights = recent | counted
        return max((_pause_s(times) for _, times in counted.values()), default=0.0)


def _pause_s(times: int) -> float:
    return 0.0 if times <= _PATIENCE else min(0.1 * 2.0 ** (times - _PATIENCE), _PAUSE_MOST_S)


def shortened(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the first few texts, and how many there are more."""
    more = len(texts) - _SHOWN
    return (*texts[:_SHOWN], *([f"and {more} more"] if more > 0 else []))
