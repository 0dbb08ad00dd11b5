"""Round trips: a server that sends back what it gets, and a client that counts.

``python -m bench.echo serve`` and ``python -m bench.echo ask ADDRESS SECONDS``:
processes of their own, so that neither waits for the other's interpreter. Both
sides of a comparison bear the same cost of Python.
"""

import contextlib
import json
import socket
import statistics
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Final

PORT: Final = 5300
_TIMEOUT_S: Final = 10.0
_BYTE: Final = b"x"
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, without waiting


@dataclass(frozen=True, slots=True)
class Echoes:
    """Seconds of a datagram's round trip; requests on one connection and connections a second."""

    round_trip_s: float
    requests_per_s: float
    connections_per_s: float


def serve(address: str = "0.0.0.0", port: int = PORT) -> None:  # noqa: S104 - a namespace of its own
    """Answer datagrams and connections for ever; one connection at a time."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, port))
    server = socket.create_server((address, port))
    threading.Thread(target=_answer_datagrams, args=(datagrams,), daemon=True).start()
    while True:
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := client.recv(64):
                client.sendall(data)


def ask(address: str, seconds: float, port: int = PORT) -> Echoes:
    """Return what was counted, each kind for a third of the time. Raises OSError."""
    third_s = seconds / 3
    return Echoes(
        _round_trip_s(address, port, third_s),
        _requests_per_s(address, port, third_s),
        _connections_per_s(address, port, third_s),
    )


def _answer_datagrams(datagrams: socket.socket) -> None:
    while True:
        data, sender = datagrams.recvfrom(64)
        datagrams.sendto(data, sender)


def _round_trip_s(address: str, port: int, seconds: float) -> float:
    samples = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(_TIMEOUT_S)
        asker.connect((address, port))
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            asker.send(_BYTE)
            asker.recv(64)
            samples.append(time.perf_counter() - started)
    return statistics.median(samples)


def _requests_per_s(address: str, port: int, seconds: float) -> float:
    with socket.create_connection((address, port), _TIMEOUT_S) as asker:
        asker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.perf_counter()
        count = 0
        while time.perf_counter() < started + seconds:
            asker.sendall(_BYTE)
            asker.recv(64)
            count += 1
        return count / (time.perf_counter() - started)


def _connections_per_s(address: str, port: int, seconds: float) -> float:
    started = time.perf_counter()
    count = 0
    while time.perf_counter() < started + seconds:
        with socket.create_connection((address, port), _TIMEOUT_S) as asker:
            asker.sendall(_BYTE)
            asker.recv(64)
            # Closed by a reset: 28,000 ports in TIME_WAIT would be used up within seconds.
            asker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        count += 1
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(asdict(ask(sys.argv[2], float(sys.argv[3])))))
