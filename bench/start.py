"""From exec to the first request that etcd gets: what an agent must load before it can begin.

etcd is a listener that speaks as much HTTP/2 as lets a client send (RFC 9113,
section 6). The floors are an interpreter that does nothing, and one that imports gRPC.
"""

import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench import agents
from bench.bed import Bed, Node, bed
from bench.options import AgentCommand, Options
from bench.series import ratio, series
from bench.table import Table
from overlay.lab import netns
from overlay.model.errors import OverlayError

_PORT: Final = 2382
_LIMIT_S: Final = 30.0
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = b"\0\0\0\4\0\0\0\0\0"
_FRAME: Final = struct.Struct("!BHBBI")  # length in two parts, kind, flags, stream
_HEADERS: Final = 1
_FLOORS: Final = {"python": "pass", "grpc": "import grpc"}
_COLUMNS: Final = (
    *("agent", "connected ms", "first request ms", "CPU until then ms"),
    *("python alone ms", "import grpc alone ms", "request / import"),
)


class NoRequestError(OverlayError):
    """An agent asked for nothing; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from exec to the connection and to the request, and of processor time."""

    connected_s: float
    request_s: float
    cpu_s: float


def run(options: Options) -> Iterator[Table]:
    """Return one table; agents and floors in turns."""
    rounds = options.pick(2, 15, 30)
    floors: dict[str, list[float]] = {name: [] for name in _FLOORS}
    found: dict[str, list[Start]] = {agent.name: [] for agent in options.agents}
    with bed() as test:
        for _ in range(rounds):
            for name, program in _FLOORS.items():
                floors[name].append(_alone_s(program))
            for agent in options.agents:
                with test.node() as node:
                    found[agent.name].append(_measure(agent, test, node))
    python, grpc = (series(samples) for samples in floors.values())
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for name, starts in found.items():
        connected, asked, cpu = (
            series(each)
            for each in zip(*((s.connected_s, s.request_s, s.cpu_s) for s in starts), strict=True)
        )
        cells = (each.spread(1000, 0) for each in (connected, asked, cpu, python, grpc))
        rows.append((name, *cells, ratio(asked.median, grpc.median)))
        samples = {"connected_s": connected, "request_s": asked, "cpu_s": cpu}
        record = {key: each.samples for key, each in samples.items()}
        records.append({"agent": name, **record, "floors_s": floors})
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(agent: AgentCommand, test: Bed, node: Node) -> Start:
    listener = netns.inside(test.namespace, lambda: socket.create_server((test.address, _PORT)))
    with contextlib.closing(listener):
        listener.settimeout(_LIMIT_S)
        endpoint = f"http://{test.address}:{_PORT}"
        with agents.running(agent, test, node, endpoint=endpoint) as running:
            try:
                client, _ = listener.accept()
                with client:
                    connected_at = time.perf_counter()
                    client.settimeout(_LIMIT_S)
                    await_request(client)
                    asked_at = time.perf_counter()
                    cpu_s = running.usage.cpu_s
            except OSError as exc:
                msg = f"{agent.name} asked etcd for nothing: {exc}\n{running.log_tail}"
                raise NoRequestError(msg) from exc
    began = running.started_at
    return Start(connected_at - began, asked_at - began, cpu_s)


def await_request(client: socket.socket) -> None:
    """Read until the first frame with a request's headers came. Raises OSError."""
    client.sendall(_SETTINGS)
    _read(client, len(_PREFACE))
    while True:
        high, low, kind, _, _ = _FRAME.unpack(_read(client, _FRAME.size))
        if kind == _HEADERS:
            return
        _read(client, high << 16 | low)


def _read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            raise ConnectionError("the connection was closed")
        data += more
    return data


def _alone_s(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started
