"""Measuring the fabric: probes to peers, echoes of theirs, in a thread of its own.

It only looks: whatever fails here is shown and changes nothing else. Peers are
probed one after another, so that datagrams are spread over the interval.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from overlay.agent.mesh_answer import Answers
from overlay.agent.mesh_flags import MeshFlags
from overlay.agent.mesh_mtu import PathMtus
from overlay.agent.mesh_peers import MeshPeers, Peer
from overlay.agent.mesh_socket import ProbeSockets
from overlay.agent.status import Snapshot, Status
from overlay.mesh.path_mtu import PathMtu
from overlay.mesh.record import Histogram, Record
from overlay.mesh.sample import Sample
from overlay.mesh.seal import NONCE_BYTES, node_tag
from overlay.mesh.told import KEPT_INTERVALS, Told
from overlay.mesh.wire import Kind, Message, MessageError, Path, Row, pack, unpack
from overlay.model.address import Family, IPAddress
from overlay.model.errors import OverlayError
from overlay.model.fabric_key import NO_KEYS, FabricKeys
from overlay.model.node import NodeIdentity
from overlay.store.base import LeaseStore, StopSignal

log = logging.getLogger(__name__)

WAYS: Final = (Path.OVERLAY, Path.UNDERLAY)
_SLOTS: Final = 10  # of one interval, each with its share of the peers
_ECHO_S: Final = 2.0  # an echo that takes longer counts as lost
_AGAIN_S: Final = 30.0  # after the port was taken or the store refused the key
_EPOCH_ROUNDS: Final = 360  # of one sample, where there are too many peers for all

MtuFound = Callable[[dict[bytes, PathMtu]], None]


class Mesh:
    """``run`` belongs to one thread; what it finds may be read by any under ``lock``."""

    def __init__(
        self,
        flags: MeshFlags,
        node: NodeIdentity,
        status: Status,
        store: LeaseStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.flags = flags
        self.node = node
        self.own = node_tag(node.id)
        self._status = status
        self._store = store
        self._clock = clock
        self.lock = threading.Lock()
        self._searched = threading.Condition(self.lock)
        self.error: str | None = None if flags.port else "off: --probe-port is 0"
        self.peers = MeshPeers()  # all that could be measured
        self._sample = Sample(self.own)
        self.records: dict[tuple[bytes, Path], Record] = {}
        self.histograms = {way: Histogram() for way in WAYS}
        self.lost = dict.fromkeys(WAYS, 0)
        self.refused: dict[str, int] = {}
        self.told = Told()
        self.mtus = PathMtus(node.id, _nonce, self._send)
        self.mtu_found: MtuFound = lambda _results: None
        self.ceiling: Callable[[Snapshot], int] = lambda s: s.site.underlay.mtu if s.site else 0
        self._answers = Answers(lambda: self.measured, self.row, clock)
        self._asked: dict[bytes, tuple[bytes, Path, float]] = {}  # by nonce, oldest first
        self._sockets: ProbeSockets | None = None
        self._slot = self._round = 0
        self._key_at = 0.0
        self._mtu_at = clock() + flags.interval_s
        self._mtu_asked = threading.Event()
        self._searches_told = 0
        self._searched_at: float | None = None

    @property
    def measured(self) -> list[bytes]:
        """Return the tags of the peers that are measured, in their order."""
        return self._sample.tags

    def run(self, stop: StopSignal) -> None:
        """Measure until ``stop`` is set. A fault of ours ends the measuring alone."""
        try:
            while self.flags.port and not stop.is_set():
                try:
                    self._sockets = ProbeSockets(self.flags.port)
                except OSError as exc:
                    words = f"--probe-port {self.flags.port}: {exc.strerror}; choose another"
                    self._say(f"peers are not measured: {words}")
                    stop.wait(_AGAIN_S)
                    continue
                self._measure(self._sockets, stop)
        except Exception as exc:
            log.exception("peers are not measured any more, by a fault of ours")
            self.error = f"ended by a fault: {exc}"

    def ask_mtu(self) -> bool:
        """Have path MTUs searched soon; any thread may ask. Return False where nobody can."""
        if self._sockets is None or self.error is not None or not self.peers:
            return False
        self._mtu_asked.set()
        self._sockets.wake()
        return True

    def search_mtu(self, timeout_s: float) -> None:
        """Search for path MTUs and wait for the end of it; any thread may ask, without the lock."""
        with self.lock:
            before = self.mtus.searches
            if not self.ask_mtu():
                return
            self._searched.wait_for(lambda: self.mtus.searches != before, timeout_s)

    def mtu_age_s(self) -> float | None:
        """Return how long ago the last whole search for path MTUs ended; None before one did."""
        return None if self._searched_at is None else self._clock() - self._searched_at

    def _measure(self, sockets: ProbeSockets, stop: StopSignal) -> None:
        slot_s = self.flags.interval_s / _SLOTS
        slot_at = self._clock()
        while not stop.is_set():
            due_at = min(slot_at, self.mtus.due_at)
            self._listen(sockets, due_at - self._clock())
            now = self._clock()
            if now >= slot_at:
                # With nobody to measure one look in an interval is enough.
                is_idle = self.keys().newest is not None and not self.measured
                slot_at = max(slot_at + (self.flags.interval_s if is_idle else slot_s), now)
                self._key()
                with self.lock:
                    peers = self._next_slot(now)
                for peer in peers:
                    with self.lock:
                        self._probe(peer)
                    # An echo that waited for the other probes of the slot would seem late.
                    self._listen(sockets, 0.0)
            with self.lock:
                self._step_mtu(now)
        sockets.close()

    def _listen(self, sockets: ProbeSockets, timeout_s: float) -> None:
        for data, family, sender in sockets.receive(timeout_s):
            with self.lock:
                self._hear(sockets, data, family, sender)

    def keys(self) -> FabricKeys:
        """Return the keys that count now; any thread may ask."""
        view = self._status.get().view
        return view.fabric_keys if view is not None else NO_KEYS

    def _key(self) -> None:
        """See to it that there is a key, once there is a view that shows none."""
        keys = self.keys()
        if keys.newest is not None:
            self._say(None)
        elif keys.error is not None:
            self._say(keys.error)
        elif self._status.get().view is not None and self._clock() >= self._key_at:
            self._key_at = self._clock() + _AGAIN_S
            try:
                if self._store.make_fabric_key():
                    log.info("made the fabric's key")
            except OverlayError as exc:
                self._say(f"no key of the fabric: {exc}")

    def _say(self, error: str | None) -> None:
        if error is not None and error != self.error:
            log.warning("mesh: %s", error)
        self.error = error

    def _next_slot(self, now: float) -> list[Peer]:
        """Count what did not come back; return whom to probe now."""
        wait_s = min(_ECHO_S, self.flags.interval_s)
        for nonce, (tag, way, sent_at) in tuple(self._asked.items()):
            if now - sent_at < wait_s:
                break
            del self._asked[nonce]
            self.lost[way] += 1
            if (tag, way) in self.records:
                self.records[tag, way].missed()
        self._slot = (self._slot + 1) % _SLOTS
        if self._slot == 0:
            self._round += 1
            self.told.forget(now - KEPT_INTERVALS * self.flags.interval_s)
        self._choose()
        return [self.peers[tag] for tag in self.measured[self._slot :: _SLOTS]]

    def _choose(self) -> None:
        """Bring the peers that are measured in step with the leases."""
        come, gone = self.peers.follow(self._status.get())
        if self._sample.follow(self.peers, come, gone, self._round // _EPOCH_ROUNDS):
            chosen = set(self.measured)
            self.records = {k: r for k, r in self.records.items() if k[0] in chosen}
            self.told.keep(chosen)

    def _probe(self, peer: Peer) -> None:
        for way, address in ((Path.OVERLAY, peer.overlay), (Path.UNDERLAY, peer.underlay)):
            if address is None:
                continue
            nonce = _nonce()
            self.records.setdefault((peer.tag, way), Record())
            self._asked[nonce] = (peer.tag, way, self._clock())
            message = Message(Kind.PROBE, way, self.own, peer.tag, nonce)
            self._send_to(address, message, 0)

    def _send(self, peer: Peer, message: Message, length: int) -> None:
        self._send_to(peer.underlay, message, length)

    def _send_to(self, address: IPAddress, message: Message, length: int) -> None:
        key = self.keys().newest
        if key is not None and self._sockets is not None:
            self._sockets.send(address, pack(message, key, length))

    def _hear(
        self, sockets: ProbeSockets, data: bytes, family: Family, sender: tuple[str, int]
    ) -> None:
        now = self._clock()
        try:
            message, key = unpack(data, self.keys().counting, self.own)
            if message.kind is Kind.PROBE:
                sockets.answer(self._answers.echo(message, key), family, sender)
            elif message.path in WAYS:
                self._heard(message, now)
            else:
                self.mtus.heard(message, len(data))
        except MessageError as exc:
            self.refused[exc.reason] = self.refused.get(exc.reason, 0) + 1

    def _heard(self, echo: Message, now: float) -> None:
        asked = self._asked.get(echo.nonce)
        if asked is None or asked[:2] != (echo.sender, echo.path):
            raise MessageError("unasked")
        del self._asked[echo.nonce]
        tag, way, sent_at = asked
        self.histograms[way].add(now - sent_at)
        if (tag, way) not in self.records:
            return  # it is no peer any more
        self.records[tag, way].answered(now - sent_at)
        self.told.hear(tag, filter(self._is_known, echo.rows), now)

    def _is_known(self, row: Row) -> bool:
        return row.tag == self.own or row.tag in self.peers

    def row(self, tag: bytes) -> Row:
        """Return what this node measured of a peer."""
        over, under = (self.records.get((tag, way)) for way in WAYS)
        return Row(
            tag,
            over.average_s if over else None,
            under.average_s if under else None,
            over.loss if over else None,
            under.loss if under else None,
        )

    def _step_mtu(self, now: float) -> None:
        is_due = self.flags.mtu_interval_s > 0 and now >= self._mtu_at
        if (is_due or self._mtu_asked.is_set()) and not self.mtus.is_busy and self.peers:
            self._mtu_asked.clear()
            self._mtu_at = now + self.flags.mtu_interval_s
            self.mtus.start(self.peers.values(), self.ceiling(self._status.get()))
        if now >= self.mtus.due_at:
            self.mtus.step(now)
        if self.mtus.searches != self._searches_told:
            self._searches_told = self.mtus.searches
            self._searched_at = now
            self._searched.notify_all()
            self.mtu_found(self.mtus.results)


def _nonce() -> bytes:
    return os.urandom(NONCE_BYTES)
