"""Two UDP streams of 1,000 packets a second, one each way, and where packets were lost.

What a socket of the stream itself had no room for is no fault of the fabric.
A process of its own, so that nothing the suite does holds a packet up. It is
spoken to through its standard input and answers on its output, a JSON value a
line; it needs nothing but the standard library and ``overlay.lab``.
"""

import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from overlay.lab import netns
from overlay.lab.errors import LabError

RATE: Final = 1000  # packets a second, each way
_TICK_S: Final = 1 / RATE
_GRACE_S: Final = 0.25  # after which a packet is lost and no longer late
_PORT: Final = 9474
_NUMBER: Final = struct.Struct("!I")
_SO_RCVBUFFORCE: Final = 33
_BUFFER: Final = 4 << 20  # bytes; a process that waits for its turn must lose nothing
_ANSWER_TIMEOUT_S: Final = 20.0

_SO_MEMINFO, _DROPS = 55, 8  # asm-generic/socket.h, linux/sock_diag.h: SK_MEMINFO_DROPS
_MEMINFO: Final = struct.Struct("=9I")
_FULL: Final = {errno.EAGAIN, errno.ENOBUFS}
_LOST, _CAME, _UNSENT = 0, 1, 2
_SOFTNET: Final = Path("/proc/net/softnet_stat")  # a line a core; dropped is the second number


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: packets numbered so far, by direction, and what was dropped beside the way.

    ``unread`` by the receivers' sockets, for they were full; ``queued`` by the
    machine's queues of packets between devices, whoever's they were.
    """

    numbers: tuple[int, ...]
    unread: int
    queued: int


@dataclass(frozen=True, slots=True)
class Losses:
    """Packets between two marks, both directions together.

    ``on_the_way`` were sent and never came. ``by_sockets`` of the stream were
    refused or dropped, which is the machine's load; ``queued`` as in ``Mark``.
    """

    on_the_way: int = 0
    by_sockets: int = 0
    queued: int = 0

    @property
    def note(self) -> str:
        """Return what to know of them; empty where all were lost on the way, or none."""
        told = []
        if self.by_sockets:
            told.append(f"{self.by_sockets} more by the stream's own sockets")
        if self.on_the_way and self.queued:
            told.append(f"the machine's queues dropped {self.queued} of anybody's")
        return ", ".join(told)


@dataclass(frozen=True, slots=True)
class End:
    """One pod: where it is and which address it has."""

    namespace: str
    address: str


class Stream:
    """The streams between two pods, for the length of a ``with`` block."""

    def __init__(self, one: End, other: End) -> None:
        self._ends = (one, other)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        words = [word for end in self._ends for word in (end.namespace, end.address)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "overlay.lab.chaos.stream", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask("mark")
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.communicate()  # it ends with its input
            process.wait()

    def mark(self) -> Mark:
        """Return how many packets have been sent by now."""
        *numbers, unread, queued = self._ask("mark")
        return Mark(tuple(numbers), unread, queued)

    def lost(self, since: Mark, until: Mark) -> Losses:
        """Return what became of the packets between two marks that never came."""
        words = ("lost", *since.numbers, *until.numbers)
        lost, unsent = self._ask(" ".join(map(str, words)))
        unread = min(lost, until.unread - since.unread)
        return Losses(lost - unread, unsent + unread, until.queued - since.queued)

    def _ask(self, words: str) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            msg = "the packet stream is not running"
            raise LabError(msg)
        try:
            process.stdin.write(f"{words}\n")
            process.stdin.flush()
        except BrokenPipeError as exc:
            msg = "the packet stream ended by itself"
            raise LabError(msg) from exc
        ready, _, _ = select.select([process.stdout], [], [], _ANSWER_TIMEOUT_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            msg = "the packet stream does not answer"
            raise LabError(msg)
        return json.loads(line)


class _Direction:
    """One sender, one receiver, and which numbers came."""

    def __init__(self, source: End, target: End) -> None:
        self.receiver = netns.inside(target.namespace, lambda: _receiver(target.address))
        self._sender = netns.inside(source.namespace, lambda: _udp(source.address, 0))
        self._target = (target.address, _PORT)
        self.came = bytearray()  # a byte a packet: what became of it

    def send(self) -> None:
        number = len(self.came)
        self.came.append(_LOST)
        try:
            self._sender.sendto(_NUMBER.pack(number), self._target)
        except OSError as exc:  # with no route now: lost
            if exc.errno in _FULL:
                self.came[number] = _UNSENT

    @property
    def unread(self) -> int:
        answer = self.receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        return int(_MEMINFO.unpack(answer)[_DROPS])

    def receive(self) -> None:
        while True:
            try:
                data = self.receiver.recv(64)
            except BlockingIOError:
                return
            except OSError:  # what an earlier packet met with
                continue
            (number,) = _NUMBER.unpack(data)
            self.came[number] = _CAME


def _serve(ends: Sequence[End]) -> None:
    one, other = ends
    directions = (_Direction(one, other), _Direction(other, one))
    poll = select.poll()
    by_descriptor = {each.receiver.fileno(): each for each in directions}
    for descriptor in (*by_descriptor, sys.stdin.fileno()):
        poll.register(descriptor, select.POLLIN)
    due: list[tuple[float, list[int]]] = []  # questions that wait for late packets
    next_at = time.monotonic()
    while True:
        for descriptor, _ in poll.poll(max(0.0, next_at - time.monotonic()) * 1000):
            if descriptor in by_descriptor:
                by_descriptor[descriptor].receive()
                continue
            text = os.read(sys.stdin.fileno(), 4096).decode()
            if not text:
                return
            verb, *numbers = text.split()
            if verb == "mark":
                unread = sum(each.unread for each in directions)
                _answer([*(len(each.came) for each in directions), unread, _queued()])
            else:
                due.append((time.monotonic() + _GRACE_S, [int(n) for n in numbers]))
        now = time.monotonic()
        if now >= next_at:
            for each in directions:
                each.send()
            # Ticks that were missed are not made up for: a burst could be lost by itself.
            next_at = max(next_at + _TICK_S, now)
        while due and now >= due[0][0]:
            _answer(_count(directions, due.pop(0)[1]))


def _count(directions: Sequence[_Direction], marks: Sequence[int]) -> list[int]:
    """Return how many packets never came, and how many were never sent."""
    since, until = marks[: len(directions)], marks[len(directions) :]
    spans = [
        each.came[first:last] for each, first, last in zip(directions, since, until, strict=True)
    ]
    return [sum(span.count(what) for span in spans) for what in (_LOST, _UNSENT)]


def _queued() -> int:
    return sum(int(line.split()[1], 16) for line in _SOFTNET.read_text().splitlines())


def _answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _receiver(address: str) -> socket.socket:
    receiver = _udp(address, _PORT)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    return receiver


def _udp(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.bind((address, port))
    return made


if __name__ == "__main__":
    _words = sys.argv[1:]
    _serve([End(*_words[:2]), End(*_words[2:])])
