"""Connections that outlived what allowed them: cut by a policy, or left by a pod that went.

The kernel asks rules about the first packet of a connection alone, so that a
new policy says nothing to one that is there: its entry is deleted, and the
next packet is asked about like a first one.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Final

from overlay.agent.attachments import Attachments
from overlay.agent.status import Status
from overlay.kernel import conntrack
from overlay.kernel.base import KernelError
from overlay.kernel.conntrack import Connection
from overlay.kernel.host.addresses import list_addresses
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import IPAddress
from overlay.model.event import Kind
from overlay.model.netpol import Flow, Protocol, World
from overlay.policy.network.compile import DEFAULTS, CompileOptions
from overlay.policy.network.decide import Decider
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

_GATHER_S: Final = 0.1  # between two looks at all connections
_IDLE_S: Final = 3600.0
_PROTOCOLS: Final = {protocol.value: protocol for protocol in Protocol}


class ConnectionCutter:
    """``judge`` and ``wake`` are for any thread, ``run`` is one of its own.

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
        list_connections: Callable[
            [Collection[IPAddress]], list[Connection]
        ] = conntrack.connections,
        cut: Callable[[Collection[Connection]], int] = conntrack.cut,
        local: Callable[[], frozenset[IPAddress]] | None = None,
    ) -> None:
        self._node, self._attachments, self._status = node, attachments, status
        self._keeps, self._list, self._cut = keeps, list_connections, cut
        self._local = local if local is not None else local_addresses
        self._bell = threading.Event()
        self._due: tuple[World, CompileOptions] | None = None
        self._before = self._own()

    def judge(self, world: World, options: CompileOptions) -> None:
        """Cut what ``world`` forbids; its table must be in force."""
        self._due = (world, options)
        self._bell.set()

    def wake(self) -> None:
        """Look which pods went."""
        self._bell.set()

    def run(self, stop: StopSignal) -> None:
        """Cut until ``stop`` is set."""
        while not stop.is_set():
            self._bell.wait(_IDLE_S)
            self._bell.clear()
            if stop.is_set():
                return
            due, self._due = self._due, None
            try:
                self.step(*(due if due is not None else (None, DEFAULTS)))
            except KernelError as exc:
                log.warning("%s", exc)
            stop.wait(_GATHER_S)

    def step(self, world: World | None, options: CompileOptions) -> int:
        """Delete what is to be deleted now; return how many entries. Raises KernelError."""
        own = self._own()
        gone, self._before = self._before - own, own
        count = 0
        if gone:
            # Whatever the protocol: what is established passes without being asked about.
            count += self._cut([c for c in self._list(gone) if not _ends(c) & own])
        if world is not None and world.policies and not self._keeps:
            forbidden = list(self._forbidden(world, options, own))
            if forbidden:
                cut = self._cut(forbidden)
                count += cut
                self._status.count(policy_cuts=cut)
                text = f"{cut} connections that policies forbid are cut"
                log.info("%s", text)
                self._status.events.note(Kind.POLICY_CUT, text, connections=cut)
        return count

    def _forbidden(
        self, world: World, options: CompileOptions, own: Iterable[IPAddress]
    ) -> Iterable[Connection]:
        pods = frozenset(own)
        if not pods:
            return
        local = self._local()
        decider = Decider(world, options)
        for entry in self._list(pods):
            protocol = _PROTOCOLS.get(entry.protocol)
            # As the hook sees it: after the destination is translated, before the source is.
            source, target = entry.original.source, entry.reply.source
            if protocol is None or source in local:
                continue
            flow = Flow(source, target, protocol, entry.reply.source_port)
            if not decider.decide(flow).allowed:
                yield entry

    def _own(self) -> frozenset[IPAddress]:
        return frozenset(a for each in self._attachments.list() for a in each.addresses)


def local_addresses() -> frozenset[IPAddress]:
    """Return the node's own addresses, on whatever link: it reaches its pods always."""
    with RtnlSocket() as rtnl:
        return frozenset(i.ip for listed in list_addresses(rtnl).values() for i in listed)


def _ends(entry: Connection) -> frozenset[IPAddress]:
    return frozenset({entry.original.source, entry.reply.source})
