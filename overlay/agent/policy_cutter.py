"""Connections that outlived what allowed them: cut by a policy, or left by a pod that went.

The kernel asks rules about the first packet of a connection alone, so that a
new policy says nothing to one that is there: its entry is marked, and the
table drops what carries the mark (``midway``). What is allowed again loses it.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Final, Protocol

from overlay.agent.attachments import Attachments
from overlay.agent.status import Status
from overlay.kernel import conntrack
from overlay.kernel.base import KernelError
from overlay.kernel.conntrack import Connection
from overlay.kernel.host.addresses import list_addresses
from overlay.kernel.rtnl import RtnlSocket
from overlay.model import netpol
from overlay.model.address import IPAddress
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.event import Kind
from overlay.model.netpol import Flow, World
from overlay.policy.network.compile import DEFAULTS, CompileOptions
from overlay.policy.network.decide import Decider
from overlay.policy.network.midway import CUT_MARK
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

_GATHER_S: Final = 0.1  # between two looks at all connections
# A look takes 9 ms where the kernel has room for 262,144 connections, be there any or none.
# Pods that went can wait for others that go: an address that is given anew does not.
_GATHER_GONE_S: Final = 0.2  # beyond that
_RETRY_S: Final = 1.0
_IDLE_S: Final = 3600.0
_PROTOCOLS: Final = {protocol.value: protocol for protocol in netpol.Protocol}


class Connections(Protocol):
    """The kernel's connections: the module ``overlay.kernel.conntrack`` fits."""

    def connections(self, about: Collection[IPAddress], /) -> list[Connection]:
        """Return those with any of these addresses at an end. Raises KernelError."""

    def cut(self, entries: Collection[Connection], /) -> int:
        """Delete entries; return how many were there. Raises KernelError."""

    def mark(self, entries: Collection[Connection], bit: int, /, *, is_set: bool) -> int:
        """Set a bit of their marks or take it away. Raises KernelError."""


class ConnectionCutter:
    """``judge``, ``wake`` and ``admit`` are for any thread, ``run`` is one of its own.

    ``keeps`` leaves connections alone that policies forbid; those of pods that
    went are deleted either way: another pod may get the address.
    """

    def __init__(
        self,
        node: str,
        attachments: Attachments,
        status: Status,
        *,
        keeps: bool = False,
        kernel: Connections = conntrack,
        local: Callable[[], frozenset[IPAddress]] | None = None,
    ) -> None:
        self._node, self._attachments, self._status = node, attachments, status
        self._keeps, self._kernel = keeps, kernel
        self._local = local if local is not None else local_addresses
        self._bell = threading.Event()
        self._is_due = threading.Event()  # there is a world to be judged
        self._looking = threading.Lock()  # taken before the other one
        self._lock = threading.Lock()  # of what follows
        self._due: tuple[World, CompileOptions] | None = None
        self._before = self._own()
        self._gone: set[IPAddress] = set()  # whose connections are not deleted yet
        self._has_marked = True  # perhaps, before the agent was started anew

    def judge(self, world: World, options: CompileOptions) -> None:
        """Cut what ``world`` forbids; its table must be in force."""
        with self._lock:
            self._due = (world, options)
        self._is_due.set()
        self._bell.set()

    def wake(self) -> None:
        """Look which pods went."""
        self._bell.set()

    def admit(self, attachment: Attachment) -> None:
        """Delete what an earlier pod left at the addresses of one that is about to start.

        Nothing is there to delete but for an address given anew at once.
        """
        with self._lock:
            given = dict.fromkeys(attachment.addresses, attachment.key)
            self._gone |= {a for a, key in given.items() if self._before.get(a, key) != key}
            stale = self._gone & given.keys()
            self._before |= given
        if stale:
            try:
                self._forget(stale)
            except KernelError as exc:
                log.warning("%s; it is tried again", exc)
                self._bell.set()

    def run(self, stop: StopSignal) -> None:
        """Cut until ``stop`` is set."""
        while not stop.is_set():
            self._bell.wait(_IDLE_S)
            self._bell.clear()
            if stop.is_set():
                return
            self._is_due.clear()
            with self._lock:
                due, self._due = self._due, None
            try:
                self.step(*(due if due is not None else (None, DEFAULTS)))
            except KernelError as exc:
                log.warning("%s; it is tried again", exc)
                with self._lock:
                    self._due = self._due or due
                self._bell.set()
                stop.wait(_RETRY_S)
            stop.wait(_GATHER_S)
            self._is_due.wait(_GATHER_GONE_S)

    def step(self, world: World | None, options: CompileOptions) -> int:
        """Cut what is to be cut now; return how many connections. Raises KernelError."""
        count = self._forget()
        if world is None:
            return count
        is_judged = bool(world.policies) or (options.admin_tier and bool(world.cluster_policies))
        if (is_judged and not self._keeps) or self._has_marked:
            count += self._judge(world, options, frozenset(self._own()))
        return count

    def _forget(self, wanted: Collection[IPAddress] | None = None) -> int:
        """Delete the connections of pods that went, whatever the protocol, with whomever.

        Of all of them: a look for ``wanted`` alone costs the same. Nothing is
        looked for that another thread has seen to meanwhile, so that a pod which
        starts keeps its own. What is established passes without being asked about.
        """
        with self._looking:
            gone = self._all_gone()
            if not gone or (wanted is not None and gone.isdisjoint(wanted)):
                return 0
            count = self._kernel.cut(self._kernel.connections(gone))
            with self._lock:
                self._gone -= gone
        return count

    def _all_gone(self) -> frozenset[IPAddress]:
        with self._lock:
            # Under the lock: a pod that is admitted after this look is not in it.
            own = self._own()
            self._gone |= {a for a, key in self._before.items() if own.get(a) != key}
            self._before = own
            return frozenset(self._gone)

    def _judge(self, world: World, options: CompileOptions, own: frozenset[IPAddress]) -> int:
        forbidden: list[Connection] = []
        allowed: list[Connection] = []
        is_any_marked = False
        for entry, passes in self._judged(world, options, own):
            is_marked = bool(entry.mark & CUT_MARK)
            is_any_marked |= not passes
            if is_marked == passes:
                (allowed if passes else forbidden).append(entry)
        if allowed:
            self._kernel.mark(allowed, CUT_MARK, is_set=False)
        count = self._kernel.mark(forbidden, CUT_MARK, is_set=True) if forbidden else 0
        self._has_marked = is_any_marked
        if count:
            self._status.count(policy_cuts=count)
            text = f"{count} connections that policies forbid are cut"
            log.info("%s", text)
            self._status.events.note(Kind.POLICY_CUT, text, connections=count)
        return count

    def _judged(
        self, world: World, options: CompileOptions, own: frozenset[IPAddress]
    ) -> Iterable[tuple[Connection, bool]]:
        """Yield this node's pods' connections, and whether each may be."""
        if not own:
            return
        local = self._local()
        decider = Decider(world, options)
        for entry in self._kernel.connections(own):
            # As the hook sees it: after the destination is translated, before the source is.
            source, target = entry.original.source, entry.reply.source
            protocol = _PROTOCOLS.get(entry.protocol)
            if self._keeps or source in local:
                yield entry, True
            elif protocol is None:
                yield entry, decider.allows_other(source, target)
            else:
                flow = Flow(source, target, protocol, entry.reply.source_port)
                yield entry, decider.decide(flow).allowed

    def _own(self) -> dict[IPAddress, AttachmentKey]:
        return {a: each.key for each in self._attachments.list() for a in each.addresses}


def local_addresses() -> frozenset[IPAddress]:
    """Return the node's own addresses, on whatever link: it reaches its pods always."""
    with RtnlSocket() as rtnl:
        return frozenset(i.ip for listed in list_addresses(rtnl).values() for i in listed)
