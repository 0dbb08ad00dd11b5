"""Real connections, hundreds at a time, between namespaces that exist.

One thread, one epoll: sockets live in the namespace that they were opened in,
whoever uses them. "Open" needs an answer of the target. A silence is believed
only after all that was expected to answer has done so, and a while more, so
that a slow machine does not pass for a closed door, nor a late answer for none.
"""

import contextlib
import ctypes
import errno
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from overlay.model.address import IPAddress
from overlay.model.netpol import Protocol

_T = TypeVar("_T")
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_AF: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_KIND: Final = {
    Protocol.TCP: socket.SOCK_STREAM,
    Protocol.UDP: socket.SOCK_DGRAM,
    Protocol.SCTP: socket.SOCK_STREAM,
}
_RESET: Final = b"\1\0\0\0\0\0\0\0"  # struct linger: close with RST, so that nothing lingers
_WORD: Final = b"here"
_AGAIN_S: Final = 0.1  # a datagram is sent again after that, and after twice that, and so on
_QUIET_S: Final = 0.2  # how much longer than the slowest answer a silence must be
_PATIENCE_S: Final = 12.0  # for what should answer; TCP's SYNs go out at 0, 1, 3 and 7 s
# What no kernel of ours hands out by itself, so that no connection is ever another's again.
_OWN_PORTS: Final = range(1024, 32000)


class Heard(Enum):
    """What became of a question."""

    ANSWER = "answered"
    REFUSAL = "refused"  # RST or an ICMP error
    SILENCE = "silent"


@dataclass(frozen=True, slots=True)
class Question:
    """One connection to try. ``source`` is None where the kernel may choose it."""

    namespace: str
    destination: IPAddress
    protocol: Protocol
    port: int
    should_answer: bool
    source: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Door:
    """Somebody who listens: on these addresses, in that namespace."""

    namespace: str
    addresses: Iterable[IPAddress]
    ports: Iterable[int]
    protocols: Iterable[Protocol] = (Protocol.TCP, Protocol.UDP)


class Prober:
    """Listens at all doors until it is closed, and asks what it is asked to."""

    def __init__(self, doors: Sequence[Door], namespaces: Iterable[str] = ()) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        names = sorted({door.namespace for door in doors} | set(namespaces))
        self._netns = {name: os.open(Path("/run/netns") / name, os.O_RDONLY) for name in names}
        self._inside = ThreadPoolExecutor(max_workers=1)  # the one that goes into namespaces
        self._epoll = select.epoll()
        self._servers: dict[int, tuple[socket.socket, Callable[[socket.socket], None]]] = {}
        self._ports = dict.fromkeys(names, _OWN_PORTS.start)
        for door in doors:
            self._listen(door)

    def close(self) -> None:
        """Close all sockets."""
        for server, _ in self._servers.values():
            server.close()
        self._epoll.close()
        self._inside.shutdown()
        for descriptor in self._netns.values():
            os.close(descriptor)

    def ask(self, questions: Sequence[Question]) -> list[Heard]:
        """Return what was heard to each, in their order; all are asked at once."""
        callers = self._callers(questions)
        try:
            self._run(callers)
            return [caller.heard or Heard.SILENCE for caller in callers]
        finally:
            for caller in callers:
                caller.socket.close()

    def _run(self, callers: Sequence["_Caller"]) -> None:
        waiting = {}
        for caller in callers:
            caller.call()
            if caller.heard is None:
                waiting[caller.socket.fileno()] = caller
                self._epoll.register(caller.socket, select.EPOLLIN)
        began = time.monotonic()
        answered = began
        again, pause = began + _AGAIN_S, _AGAIN_S
        expected = sum(caller.question.should_answer for caller in waiting.values())
        while waiting:
            for descriptor, events in self._epoll.poll(0.02):
                if descriptor in self._servers:
                    server, serve = self._servers[descriptor]
                    serve(server)
                    continue
                caller = waiting[descriptor]
                caller.hear(is_over=bool(events & (select.EPOLLERR | select.EPOLLHUP)))
                if caller.heard is not None:
                    self._epoll.unregister(caller.socket)
                    del waiting[descriptor]
                    expected -= caller.question.should_answer
                    answered = time.monotonic()
            now = time.monotonic()
            if now > (began + _PATIENCE_S if expected else max(answered, again - pause) + _QUIET_S):
                for caller in waiting.values():
                    self._epoll.unregister(caller.socket)
                return
            if now > again and (expected or pause == _AGAIN_S):
                for caller in waiting.values():
                    caller.repeat()
                pause *= 2
                again = now + pause

    def _callers(self, questions: Sequence[Question]) -> list["_Caller"]:
        by_namespace: dict[str, list[int]] = {}
        for index, question in enumerate(questions):
            by_namespace.setdefault(question.namespace, []).append(index)
        found: dict[int, _Caller] = {}
        for name, indices in by_namespace.items():
            found |= self._enter(name, partial(self._open, name, indices, questions))
        return [found[index] for index in range(len(questions))]

    def _open(
        self, namespace: str, indices: Iterable[int], questions: Sequence[Question]
    ) -> dict[int, "_Caller"]:
        return {
            index: _Caller(questions[index], self._bound(namespace, questions[index]))
            for index in indices
        }

    def _bound(self, namespace: str, question: Question) -> socket.socket:
        version = question.destination.version
        caller = socket.socket(_AF[version], _KIND[question.protocol] | socket.SOCK_NONBLOCK)
        host = str(question.source) if question.source else "::" if version == 6 else "0.0.0.0"
        while True:
            port = self._ports[namespace]
            self._ports[namespace] = port + 1 if port + 1 in _OWN_PORTS else _OWN_PORTS.start
            try:
                caller.bind((host, port))
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                continue
            return caller

    def _listen(self, door: Door) -> None:
        def opened() -> list[tuple[Protocol, socket.socket]]:
            return [
                (protocol, _server(protocol, address, port))
                for address in door.addresses
                for protocol in door.protocols
                for port in door.ports
            ]

        for protocol, server in self._enter(door.namespace, opened):
            serve = _echo if protocol is Protocol.UDP else _greet
            self._servers[server.fileno()] = server, serve
            self._epoll.register(server, select.EPOLLIN)

    def _enter(self, namespace: str, work: Callable[[], _T]) -> _T:
        def entered() -> _T:
            if _LIBC.setns(self._netns[namespace], _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns", namespace)
            return work()

        return self._inside.submit(entered).result()


class _Caller:
    """One question under way."""

    __slots__ = ("heard", "question", "socket")

    def __init__(self, question: Question, caller: socket.socket) -> None:
        self.question = question
        self.socket = caller
        self.heard: Heard | None = None

    def call(self) -> None:
        if self.question.protocol is Protocol.TCP:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        number = self.socket.connect_ex((str(self.question.destination), self.question.port))
        if number not in (0, errno.EINPROGRESS):
            self.heard = Heard.REFUSAL
        elif self.question.protocol is Protocol.UDP:
            self.repeat()

    def repeat(self) -> None:
        """Send a datagram again; TCP does so by itself."""
        if self.question.protocol is Protocol.UDP:
            try:
                self.socket.send(_WORD)
            except BlockingIOError:
                return
            except OSError:
                self.heard = self.heard or Heard.REFUSAL

    def hear(self, *, is_over: bool) -> None:
        """Read what came; with ``is_over`` nothing more will, though reading may not say so."""
        try:
            word = self.socket.recv(64)
        except BlockingIOError:
            self.heard = Heard.REFUSAL if is_over else None
            return
        except OSError:
            self.heard = Heard.REFUSAL
            return
        self.heard = Heard.ANSWER if word == _WORD else Heard.REFUSAL


def has_sctp() -> bool:
    """Return whether this kernel speaks SCTP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def probing(doors: Sequence[Door], namespaces: Iterable[str] = ()) -> Iterator[Prober]:
    """Listen for the length of a ``with`` block."""
    prober = Prober(doors, namespaces)
    try:
        yield prober
    finally:
        prober.close()


def _server(protocol: Protocol, address: IPAddress, port: int) -> socket.socket:
    server = socket.socket(_AF[address.version], _KIND[protocol] | socket.SOCK_NONBLOCK)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((str(address), port))
    if protocol is not Protocol.UDP:
        server.listen(1024)
    return server


def _greet(server: socket.socket) -> None:
    """Take every call that waits: a word, and the line is closed."""
    while True:
        try:
            line, _ = server.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        with line, contextlib.suppress(OSError):
            line.send(_WORD)


def _echo(server: socket.socket) -> None:
    while True:
        try:
            word, peer = server.recvfrom(64)
        except (BlockingIOError, ConnectionRefusedError):
            return
        with contextlib.suppress(OSError):
            server.sendto(word, peer)
