"""The agent: threads up, and an orderly end that leaves traffic flowing."""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from overlay import __version__
from overlay.agent.announcement import Announce, Announcement
from overlay.agent.attachments import Attachments
from overlay.agent.cni import CniService
from overlay.agent.cni_witness import witnessed
from overlay.agent.conflist import ConfigFile
from overlay.agent.control import ControlServer, calls, refuse_second
from overlay.agent.event_call import event_calls
from overlay.agent.event_journal import Journal
from overlay.agent.event_recorder import Recorder
from overlay.agent.events import Events
from overlay.agent.flags import Flags
from overlay.agent.heartbeat import Heartbeats
from overlay.agent.host import Host
from overlay.agent.host_local import HostLocal
from overlay.agent.http import HttpServer
from overlay.agent.kernel_watch import KernelWatch
from overlay.agent.layer2 import Layer2
from overlay.agent.lessee import Lessee
from overlay.agent.mesh_part import MeshPart
from overlay.agent.notify import notify
from overlay.agent.policy_part import PolicyPart
from overlay.agent.reconciler import Reconciler
from overlay.agent.status import WAITING_HOST, WAITING_STORE, Status
from overlay.agent.sysctl_watch import SysctlWatch
from overlay.kernel.netlink import NetlinkKernel, check_devices
from overlay.kernel.nft_generation import OwnWrites
from overlay.kernel.notices import UNDERLAY, Notice
from overlay.model.errors import UsageError
from overlay.model.event import Kind
from overlay.model.lease import LeaseView
from overlay.model.node import Underlay
from overlay.plan.backend import Backend
from overlay.store.base import LeaseStore, StoreError

log = logging.getLogger(__name__)

_HOST_RETRY_S: Final = 2.0
_STUCK_S: Final = 60.0  # beyond the audit interval, before /healthz says so
# The same for who calls the store: a slow one's listing of all leases is many calls.
_STUCK_CALLS_S: Final = 600.0


class Agent:
    """All of ``overlayd`` but its flags: runs until ``stop`` is set or nothing can go on."""

    def __init__(
        self,
        flags: Flags,
        store: LeaseStore,
        clock: Callable[[], float] = time.monotonic,
        host: Host | None = None,
        announce: Announce | None = None,
    ) -> None:
        self._flags = flags
        self._store = store
        self._announce = announce
        self._clock = clock
        self._host = host if host is not None else _this_machine(flags)
        self._started_at = clock()
        self._fault: Exception | None = None
        self._beats = Heartbeats(clock)
        self._is_working = False  # it waits for the host until then
        self.stop = self._host.bell()
        self.status = Status(Events(self._host.wall_clock))
        self._recorder = Recorder(self.status, Journal(flags.state_dir))
        host_local = HostLocal(flags.host_local_dir)
        attachments = Attachments(
            flags.state_dir / "attachments", flags.reserved, host_local.addresses
        )
        self.mesh = MeshPart(flags, store, self.status, self._host, clock, attachments.list)
        own = OwnWrites()
        layer2 = Layer2(attachments, own)
        self.reconciler = Reconciler(
            flags,
            self.status,
            self._host.kernel,
            self._host.firewall(own),
            clock,
            bell=self._host.bell(),
            write=self._host.write_file,
            layer2=layer2 if host is None else None,  # a simulated machine has no pods
        )
        self.policy = (
            PolicyPart(
                flags.policy,
                flags.node,
                attachments,
                self.status,
                store.policies(cluster=flags.policy.admin_tier),
                own,
            )
            if flags.policy.is_on and host is None
            else None
        )
        self.cni = CniService(
            self.status,
            attachments,
            layer2,
            gate=self.policy,
            clock=self._host.boot_clock,
            host_local=host_local,
        )
        self.lessee = Lessee(
            flags,
            store,
            self.status,
            self.reconciler.sites,
            self._check,
            self._host.boot_clock,
            self.mesh.host,
            attachments.outside,
        )
        self.mesh.clamp.wake = self.lessee.wake

    def run(self) -> None:
        """Work until stopped. Raises OverlayError for what only an operator can mend."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._recorder.close)
            if not self._is_listening_when_free(stack):
                return
            self._record(stack)
            threads: dict[str, Callable[[], None]] = {
                "watch": self._watch,
                "lessee": self._lease,
                "monitor": self._monitor,
                "mesh": functools.partial(self.mesh.run, self.stop),
                "conflist": self._offer,
            }
            if self._announce is not None:
                announced = Announcement(self._announce, self.status)
                threads["announce"] = functools.partial(announced.run, self.stop)
            sysctls = SysctlWatch(self.status, self.reconciler.tell)
            threads["sysctls"] = functools.partial(sysctls.run, self.stop)
            if self.policy is not None:
                beat = functools.partial(self._beats.of, "policy watch", self.stop, _STUCK_CALLS_S)
                threads |= self.policy.threads(self.stop, beat)
            for name, target in threads.items():
                run = functools.partial(self._run_thread, target)
                threading.Thread(target=run, name=name, daemon=True).start()
            self.reconciler.run(self.stop)
            notify("STOPPING=1")
        if self._fault is not None:
            raise self._fault
        if self.lessee.fatal is not None:
            raise self.lessee.fatal

    def _run_thread(self, target: Callable[[], None]) -> None:
        """Run one concern; a fault of ours in it ends the whole, for nothing works by halves."""
        try:
            target()
        except Exception as exc:  # noqa: BLE001 - raised again by run
            self._fault = exc
            self.end()

    def end(self) -> None:
        """Make ``run`` return; forwarding stays as it is."""
        self.stop.set()
        self.reconciler.bell.set()
        self.lessee.wake()

    def _record(self, stack: contextlib.ExitStack) -> None:
        self._recorder.start()  # not before it is clear that no other agent writes there
        events, node = self.status.events, self._flags.node
        text = f"overlayd {__version__} on node {node.name}"
        events.note(Kind.AGENT_STARTED, text, node=node.name, version=__version__)
        stack.callback(events.note, Kind.AGENT_STOPPING, "forwarding stays as it is")

    def _is_listening_when_free(self, stack: contextlib.ExitStack) -> bool:
        """Listen; with ``--wait-for-host`` as soon as no other agent does, unless stopped before.

        Raises UsageError.
        """
        while not self.stop.is_set():
            try:
                with contextlib.ExitStack() as attempt:
                    self._listen(attempt)
                    stack.push(attempt.pop_all())
            except UsageError as exc:
                if not self._flags.waits_for_host:
                    raise
                text = str(exc)
                if self.status.get().lessee_error != text:
                    log.warning("%s; waiting until that is mended", text)
                self.status.update(phase=WAITING_HOST, lessee_error=text)
                self.stop.wait(_HOST_RETRY_S)
            else:
                if self.status.get().phase == WAITING_HOST:
                    self.status.update(phase=WAITING_STORE, lessee_error=None)
                self._is_working = True
                return True
        return False

    def probe(self, question: str) -> str:
        """Return why the agent is not ``live`` or ``ready``, in words; empty where it is."""
        if question == "live":
            return "; ".join(self._stuck()) if self._is_working else ""
        return "; ".join(self.status.get().reasons)

    def _listen(self, stack: contextlib.ExitStack) -> None:
        flags = self._flags
        stranded = self.cni.stranded
        answers = calls(
            *(flags.node, self.status, self.reconciler, self._started_at, stranded),
            flags.renew_margin_s,
        )
        answers |= self.cni.calls() | event_calls(self.status.events) | self.mesh.calls()
        if self.policy is not None:
            answers |= self.policy.calls()
            self.mesh.beside = self.policy.families
        self.mesh.answers = answers
        try:
            refuse_second(flags.cni_socket)
            self.cni.recover()
            cni = witnessed(self.status, self.cni.answer)
            control = ControlServer(flags.cni_socket, answers, cni)
        except OSError as exc:
            msg = f"--cni-socket {flags.cni_socket}: {exc.strerror or exc}"
            raise UsageError(msg) from exc
        stack.callback(control.close)
        if flags.healthz_port:
            try:
                http = HttpServer(
                    flags.healthz_ip,
                    flags.healthz_port,
                    self.status,
                    self._stuck,
                    stranded,
                    self.mesh,
                    names=flags.metrics_names,
                )
            except OSError as exc:
                msg = (
                    f"--healthz-ip {flags.healthz_ip} --healthz-port {flags.healthz_port}: "
                    f"{exc.strerror}; choose another port"
                )
                raise UsageError(msg) from exc
            stack.callback(http.close)

    def _watch(self) -> None:
        beat = self._beats.of("lease watch", self.stop, _STUCK_CALLS_S)
        self._store.watch(self._deliver, self._trouble, beat)

    def _deliver(self, view: LeaseView) -> None:
        before = self.status.get()
        # Where there is trouble, the watch itself says when it is over.
        if not before.is_store_connected and before.store_error is None:
            self.status.update(is_store_connected=True)
        self.lessee.views.put(view)
        self.reconciler.views.put(view)
        if self.policy is not None:
            self.policy.follow(view)

    def _trouble(self, error: StoreError | None) -> None:
        before = self.status.get()
        text = None if error is None else str(error)
        if text is not None and text != before.store_error:
            log.warning("%s; forwarding goes on with the last view", text)
            self.status.events.note(Kind.STORE_LOST, text)
        if text is None and before.store_error is not None:
            log.info("the store answers again")
            self.status.events.note(Kind.STORE_BACK, "the store answers again")
            self.lessee.store_is_back()  # what it wanted to write waits for its next try else
        self.status.count(store_troubles=text is not None)
        self.status.update(
            store_error=text,
            is_store_connected=text is None,
        )
        if text is not None and before.view is None:
            notify(f"STATUS={WAITING_STORE}: {text}")

    def _lease(self) -> None:
        self.lessee.run(self._beats.of("lessee", self.stop, _STUCK_CALLS_S), self.end)

    def _monitor(self) -> None:
        poll_s = self._flags.audit_interval_s
        watch = KernelWatch(self._tell, lambda: self.reconciler.echoes, poll_s)
        watch.run(self._beats.of("kernel monitor", self.stop, poll_s + _STUCK_S))

    def _tell(self, notices: Sequence[Notice]) -> None:
        known = self.status.get()
        if UNDERLAY in notices and (known.site is not None or known.phase == WAITING_HOST):
            self.lessee.wake()
        self.reconciler.tell(notices)
        if self.policy is not None:
            self.policy.tell(notices)

    def _offer(self) -> None:
        flags = self._flags
        file = ConfigFile(flags.cni, flags.cni_socket, flags.audit_interval_s)
        file.run(self.status, self.stop)

    def _stuck(self) -> Sequence[str]:
        quiet_s = self._clock() - self.reconciler.heartbeat
        is_stuck = quiet_s > self._flags.audit_interval_s + _STUCK_S
        return [*([f"reconciler for {quiet_s:.0f} s"] if is_stuck else []), *self._beats.stuck()]

    def _check(self, backend: Backend, underlay: Underlay) -> None:
        if backend.tunnel is not None:
            self._host.check_devices(backend.tunnel, self._flags.node, underlay)


def _this_machine(flags: Flags) -> Host:
    if not flags.replaces_flannel:
        return Host()
    return Host(
        kernel=functools.partial(NetlinkKernel, replaces_flannel=True),
        check_devices=functools.partial(check_devices, replaces_flannel=True),
    )
