"""Packets that policies refuse: counted by policy, and told with the names of pods."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from overlay.agent.status import Status
from overlay.kernel.base import KernelError
from overlay.kernel.nflog import LoggedPacket, PacketLog
from overlay.model.address import IPAddress
from overlay.model.event import Kind
from overlay.model.netpol import Protocol, World
from overlay.policy.network.midway import CUT, MIDWAY
from overlay.policy.network.render import UNKNOWN, LogOptions
from overlay.policy.network.table import Denial
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

_POLL_S: Final = 3600.0  # the thread ends with the process
_PAST: Final = 1000
_MOST: Final = 20  # lines a second, from all classes of pods together
_NAMES: Final = {protocol.value: protocol.name for protocol in Protocol} | {1: "ICMP", 58: "ICMPv6"}

_REASONS: Final = {
    UNKNOWN.ident: "by no policy: the pod is not known yet",
    CUT.ident: "by a policy that came after the connection",
    MIDWAY.ident: "in the middle of a connection whose beginning nobody saw",
}


@dataclass(slots=True)
class DenialCounts:
    """Refused packets since the start of the agent, by who refused them.

    Counters of the kernel begin anew where the table is written whole. Of
    those that are no more, the last ``_PAST`` are told.
    """

    read: Callable[[], Mapping[str, tuple[int, int]]]
    _denials: dict[str, Denial] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    _totals: Counter[str] = field(default_factory=Counter)

    def look(self, denials: Mapping[str, Denial]) -> list[tuple[Denial, int]]:
        """Return the packets of each denial that there is or was. Raises NftError."""
        self._denials.update(denials)
        gone = [ident for ident in self._denials if ident not in denials]
        for ident in gone[: max(0, len(gone) - _PAST)]:
            for known in (self._denials, self._seen, self._totals):
                known.pop(ident, None)
        found = self.read() if denials else {}
        for ident, denial in self._denials.items():
            packets, _ = found.get(denial.counter, (0, 0))
            before = self._seen.get(ident, 0)
            self._totals[ident] += packets - before if packets >= before else packets
            self._seen[ident] = packets
        return [(denial, self._totals[ident]) for ident, denial in self._denials.items()]


class DenialLog:
    """Says who was refused what, by whose policy; at most so many lines a second.

    ``world`` and ``denials`` return what is in force now.
    """

    def __init__(
        self,
        options: LogOptions,
        status: Status,
        world: Callable[[], World],
        denials: Callable[[], Mapping[str, Denial]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._status, self._clock = options, status, clock
        self._world, self._denials = world, denials
        self._named: tuple[World, dict[IPAddress, str]] | None = None
        self._second, self._lines = 0.0, 0

    def run(self, stop: StopSignal) -> None:
        """Read until ``stop`` is set, or nothing can be read."""
        try:
            packets = PacketLog(self._options.group, self._options.snaplen)
            while not stop.is_set():
                for packet in packets.wait(_POLL_S):
                    self.tell(packet)
        except KernelError as exc:
            log.warning("%s; refused packets are counted and not logged", exc)

    def tell(self, packet: LoggedPacket) -> None:
        """Log a packet and note it as an event, if not too many were."""
        words = packet.prefix.split()
        denial = self._denials().get(words[1]) if len(words) > 1 else None
        if denial is None or not self._has_room():
            return
        text, facts = self._told(packet, denial)
        log.info("%s", text)
        self._status.events.note(Kind.POLICY_DENIED, text, **facts)

    def _has_room(self) -> bool:
        now = self._clock()
        if now - self._second >= 1.0:
            self._second, self._lines = now, 0
        self._lines += 1
        return self._lines <= _MOST

    def _told(self, packet: LoggedPacket, denial: Denial) -> tuple[str, dict[str, Any]]:
        protocol = _NAMES.get(packet.protocol, f"protocol {packet.protocol}")
        port = f" port {packet.port}" if packet.port else ""
        source, target = self._shown(packet.source), self._shown(packet.destination)
        way = denial.direction.value if denial.direction is not None else "any"
        verdict = "would be denied (audit)" if denial.audited else "is denied"
        because = _REASONS.get(denial.ident) or f"by {way} of {', '.join(denial.policies)}"
        text = f"{source} to {target} {protocol}{port} {verdict} {because}"
        facts = {
            "source": str(packet.source),
            "destination": str(packet.destination),
            "protocol": protocol,
            "port": packet.port,
            "direction": way,
            "policies": list(denial.policies),
            "audited": denial.audited,
        }
        return text, facts

    def _shown(self, address: IPAddress) -> str:
        world = self._world()
        if self._named is None or self._named[0] is not world:
            names = {a: "/".join(pod.key) for pod in world.pods.values() for a in pod.addresses}
            for node, addresses in world.nodes.items():
                names.update(dict.fromkeys(addresses, f"node {node}"))
            self._named = (world, names)
        name = self._named[1].get(address)
        return f"{name} ({address})" if name else str(address)
