"""Asks the questions of a lab test: one process, one loop, sockets in every namespace.

A server for UDP and TCP stands at each endpoint and tells every caller where
it seemed to come from. It also keeps a ledger, so that the source is known of
packets whose answer finds no way back.
"""

import errno
import itertools
import selectors
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final, Protocol

from overlay.lab import netns, search, sockets
from overlay.lab.matrix import Endpoint, Flow, Observation, Outcome
from overlay.lab.search import Attempt, Measurement, Verdict
from overlay.model.address import IPAddress

PORT: Final = 9473
_WAVE: Final = 200  # flows at a time: two descriptors each, of the usual 1024
_HEADER: Final = struct.Struct("!4sI")  # mark, number of the probe
_MARK: Final = b"ovlT"
_CONNECT_S: Final = 3.5  # SYNs go out at 0, 1 and 3 s
_IMPATIENT_S: Final = 1.5  # for flows that may meet with silence

_Ledger = dict[int, IPAddress]


class _Party(Protocol):
    """Somebody in the loop: told when its socket has something."""

    socket: socket.socket

    def ready(self) -> None: ...


class _Asker(_Party, Protocol):
    """A party that waits for something until ``deadline`` (monotonic seconds)."""

    deadline: float
    is_done: bool

    def expired(self) -> None: ...


def observe(endpoints: Sequence[Endpoint], flows: Sequence[Flow]) -> list[Observation]:
    """Return what is seen of each flow, in their order.

    Takes about a second when nothing is lost. Raises LabError when a
    namespace is not there.
    """
    ledger: _Ledger = {}
    with selectors.DefaultSelector() as selector:
        servers = _open_servers(endpoints, ledger)
        try:
            for server in servers:
                selector.register(server.socket, selectors.EVENT_READ, server)
            seen: list[Observation] = []
            numbers = itertools.count(1)
            for start in range(0, len(flows), _WAVE):
                seen += _wave(selector, flows[start : start + _WAVE], ledger, numbers)
            return seen
        finally:
            for server in servers:
                server.socket.close()


def _wave(
    selector: selectors.BaseSelector,
    flows: Sequence[Flow],
    ledger: _Ledger,
    numbers: "itertools.count[int]",
) -> list[Observation]:
    pairs = _open_askers(flows, ledger, numbers)
    askers: list[_Asker] = [asker for pair in pairs for asker in pair]
    try:
        for udp, tcp in pairs:
            selector.register(udp.socket, selectors.EVENT_READ, udp)
            udp.begin()
            tcp.begin()
            if not tcp.is_done:
                # Connected is not enough, so writable is not waited for;
                # errors are reported whatever one waits for.
                selector.register(tcp.socket, selectors.EVENT_READ, tcp)
        _run(selector, askers)
        return [_observation(udp, tcp) for udp, tcp in pairs]
    finally:
        for asker in askers:
            if asker.socket.fileno() in selector.get_map():
                selector.unregister(asker.socket)
            asker.socket.close()


def _run(selector: selectors.BaseSelector, askers: Iterable[_Asker]) -> None:
    waiting = {id(asker): asker for asker in askers if not asker.is_done}
    while waiting:
        nearest = min(asker.deadline for asker in waiting.values())
        for key, _ in selector.select(max(0.0, nearest - time.monotonic())):
            party: _Party = key.data
            party.ready()
        now = time.monotonic()
        for number, asker in list(waiting.items()):
            if not asker.is_done and asker.deadline <= now:
                asker.expired()
            if asker.is_done:
                selector.unregister(asker.socket)
                del waiting[number]


def _observation(udp: "_UdpAsker", tcp: "_TcpAsker") -> Observation:
    return Observation(
        udp=udp.measured.outcome,
        tcp=tcp.outcome,
        source=udp.source,
        tcp_source=tcp.source,
        largest=udp.measured.largest,
        error=udp.error or tcp.error,
    )


class _UdpServer:
    """Answers each probe with its number and the source that it was seen with."""

    def __init__(self, server: socket.socket, ledger: _Ledger) -> None:
        self.socket = server
        self._ledger = ledger

    def ready(self) -> None:
        while True:
            try:
                data, peer = self.socket.recvfrom(65536)
            except BlockingIOError:
                return
            if len(data) < _HEADER.size or not data.startswith(_MARK):
                continue
            self._ledger[_HEADER.unpack_from(data)[1]] = ip_address(peer[0])
            try:
                self.socket.sendto(data[: _HEADER.size] + peer[0].encode(), peer)
            except OSError:  # no way back: the asker will call it lost
                continue


class _TcpServer:
    """Tells each caller the source that it was seen with."""

    def __init__(self, server: socket.socket) -> None:
        self.socket = server

    def ready(self) -> None:
        try:
            caller, peer = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        with caller:
            caller.sendall(peer[0].encode())


class _UdpAsker:
    """Carries out one flow's search."""

    def __init__(
        self,
        flow: Flow,
        probe: socket.socket,
        ledger: _Ledger,
        numbers: "itertools.count[int]",
    ) -> None:
        self.socket = probe
        self.deadline = 0.0
        self.is_done = False
        self.measured = Measurement(Outcome.LOST)
        self.source: IPAddress | None = None
        self.error: int | None = None
        self._flow = flow
        self._ledger = ledger
        self._numbers = numbers
        self._number = 0
        expectation = flow.expectation
        attempts = 1 if Outcome.LOST in expectation.outcomes else 3
        self._search = search.measure(expectation.largest, attempts)

    def begin(self) -> None:
        target = str(self._flow.target.addresses[self._flow.family])
        try:
            self.socket.connect((target, PORT))
        except OSError as exc:  # no route
            self.error = exc.errno
            self.measured = Measurement(Outcome.REFUSED)
            self.is_done = True
            return
        self._go_on(self._transmit(next(self._search)))

    def ready(self) -> None:
        verdict = self._errors() or self._answers()
        if verdict is not None and not self.is_done:
            self._go_on(verdict)

    def expired(self) -> None:
        self._go_on(Verdict.LOST)

    def _go_on(self, verdict: Verdict | None) -> None:
        self.source = self._ledger.get(self._number, self.source)
        while verdict is not None:
            try:
                attempt = self._search.send(verdict)
            except StopIteration as end:
                self.measured = end.value
                self.is_done = True
                return
            verdict = self._transmit(attempt)

    def _transmit(self, attempt: Attempt) -> Verdict | None:
        """Send; return the verdict when the kernel has one at once."""
        self._number = next(self._numbers)
        self.deadline = time.monotonic() + attempt.patience_s
        header = _HEADER.pack(_MARK, self._number)
        payload = header.ljust(attempt.size - sockets.HEADERS[self._flow.family], b"\0")
        sockets.pending_error(self.socket)  # of an earlier packet
        try:
            self.socket.send(payload)
        except BlockingIOError:
            return None
        except OSError as exc:
            return self._verdict(exc.errno)
        return None

    def _errors(self) -> Verdict | None:
        verdict = None
        for error in sockets.errors(self.socket):
            # An error for an earlier packet says nothing about this one; a
            # router that quotes less than our header leaves it open.
            quoted = error.payload[: _HEADER.size]
            if len(quoted) < _HEADER.size or _HEADER.unpack(quoted)[1] == self._number:
                verdict = self._verdict(error.number)
        return verdict

    def _answers(self) -> Verdict | None:
        verdict = None
        while True:
            try:
                data = self.socket.recv(256)
            except BlockingIOError:
                return verdict
            except OSError:  # the same error that the queue has told
                continue
            if data[: _HEADER.size] == _HEADER.pack(_MARK, self._number):
                verdict = Verdict.ANSWERED

    def _verdict(self, number: int | None) -> Verdict:
        if number == errno.EMSGSIZE:
            return Verdict.TOO_BIG
        self.error = number
        return Verdict.REFUSED


class _TcpAsker:
    """Connects once and reads where the far end saw it come from."""

    def __init__(self, flow: Flow, probe: socket.socket) -> None:
        self.socket = probe
        self.deadline = 0.0
        self.is_done = False
        self.outcome = Outcome.LOST
        self.source: IPAddress | None = None
        self.error: int | None = None
        self._flow = flow

    def begin(self) -> None:
        impatient = Outcome.LOST in self._flow.expectation.outcomes
        self.deadline = time.monotonic() + (_IMPATIENT_S if impatient else _CONNECT_S)
        target = str(self._flow.target.addresses[self._flow.family])
        number = self.socket.connect_ex((target, PORT))
        if number not in (0, errno.EINPROGRESS):
            self._refused(number)

    def ready(self) -> None:
        number = sockets.pending_error(self.socket)
        if number:
            self._refused(number)
            return
        try:
            told = self.socket.recv(256)
        except BlockingIOError:
            return
        except OSError as exc:
            self._refused(exc.errno)
            return
        self.is_done = True
        if told:
            self.outcome = Outcome.ANSWERED
            self.source = ip_address(told.decode())

    def expired(self) -> None:
        self.is_done = True

    def _refused(self, number: int | None) -> None:
        self.outcome = Outcome.REFUSED
        self.error = number
        self.is_done = True


def _open_servers(endpoints: Iterable[Endpoint], ledger: _Ledger) -> list[_Party]:
    by_namespace = {endpoint.namespace: endpoint for endpoint in endpoints}

    def listen(namespace: str) -> list[_Party]:
        servers: list[_Party] = []
        for address in by_namespace[namespace].addresses.values():
            udp = sockets.listener(socket.SOCK_DGRAM, address, PORT)
            tcp = sockets.listener(socket.SOCK_STREAM, address, PORT)
            servers += [_UdpServer(udp, ledger), _TcpServer(tcp)]
        return servers

    opened = netns.inside_each(by_namespace, listen)
    return [server for servers in opened.values() for server in servers]


def _open_askers(
    flows: Sequence[Flow], ledger: _Ledger, numbers: "itertools.count[int]"
) -> list[tuple[_UdpAsker, _TcpAsker]]:
    by_namespace: dict[str, list[Flow]] = {}
    for flow in flows:
        by_namespace.setdefault(flow.source.namespace, []).append(flow)
    opened = netns.inside_each(
        by_namespace,
        lambda namespace: [
            (
                _UdpAsker(flow, sockets.prober(flow.family), ledger, numbers),
                _TcpAsker(flow, sockets.connector(flow.family)),
            )
            for flow in by_namespace[namespace]
        ],
    )
    by_flow = {
        id(flow): pair
        for namespace, local in by_namespace.items()
        for flow, pair in zip(local, opened[namespace], strict=True)
    }
    return [by_flow[id(flow)] for flow in flows]
