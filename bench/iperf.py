"""iperf3 between two namespaces."""

import contextlib
import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench import echo
from overlay.lab import netns
from overlay.model.errors import OverlayError

PORT: Final = 5201
_SMALL: Final = 64  # bytes in a datagram: packets are counted, not bits
_LEAST: Final = "2M"
_START_S: Final = 10.0
_LIMIT_S: Final = 60.0
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Path:
    """From where, to where, and the address there; both ends are namespaces."""

    name: str
    source: str
    target: str
    address: str


class TrafficError(OverlayError):
    """Traffic did not flow, or a program for it is missing."""


@contextlib.contextmanager
def echo_server(namespace: str) -> Iterator[None]:
    """Run an echo server in a namespace; it has ended after the block."""
    with _server(namespace, [sys.executable, "-m", "bench.echo", "serve"], echo.PORT):
        yield


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bits per second that arrive, and processor seconds of both ends for a gigabyte.

    What the kernel does in a softirq counts for whom it interrupts, mostly one of the two.
    """

    bits_per_s: float
    cpu_s_per_gb: float


def tcp(path: Path, seconds: int, streams: int) -> Transfer:
    """Send in ``streams`` connections together, for 0 seconds a few megabytes.

    Raises TrafficError.
    """
    end = _run(path, seconds, "--parallel", str(streams))["end"]
    received, used = end["sum_received"], end["cpu_utilization_percent"]
    busy_s = (used["host_total"] + used["remote_total"]) / 100 * received["seconds"]
    return Transfer(float(received["bits_per_second"]), busy_s / (received["bytes"] / 1e9))


def udp(path: Path, seconds: int) -> float:
    """Return the datagrams of 64 bytes that arrive in a second, sent as fast as it goes.

    In 0 seconds, a few megabytes are sent. Raises TrafficError.
    """
    report = _run(path, seconds, "--udp", "--bitrate", "0", "--length", str(_SMALL))
    total = report["end"]["sum"]
    return float((total["packets"] - total["lost_packets"]) / total["seconds"])


def echoes(path: Path, seconds: float) -> echo.Echoes:
    """Return round trips and rates. Raises TrafficError."""
    command = [sys.executable, "-m", "bench.echo", "ask", path.address, str(seconds)]
    done = netns.inside(path.source, functools.partial(_captured, command))
    if done.returncode:
        raise TrafficError(f"echo to {path.address}: {done.stderr.strip()[-300:]}")
    return echo.Echoes(**json.loads(done.stdout))


def _run(path: Path, seconds: int, *more: str) -> Any:
    """Return the report of one test, tried again a few times: a full machine breaks some off."""
    if shutil.which("iperf3") is None:
        raise TrafficError("iperf3 is not on this machine; `make setup` installs it")
    command = ["iperf3", "--client", path.address, "--port", str(PORT), "--json", *more]
    command += ["--time", str(seconds)] if seconds else ["--bytes", _LEAST]
    problem = ""
    for _ in range(_TRIES):
        # A server for each: one that lost its client still counts as busy.
        serve = ["iperf3", "--server", "--one-off", "--port", str(PORT)]
        with _server(path.target, serve, PORT):
            done = netns.inside(path.source, functools.partial(_captured, command))
        report = json.loads(done.stdout or "{}")
        problem = f"{report.get('error', '')} {done.stderr[-300:]}".strip()
        if done.returncode == 0 and not problem:
            return report
    raise TrafficError(f"iperf3 to {path.address}: {problem}")


def _captured(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S)


@contextlib.contextmanager
def _server(namespace: str, command: list[str], port: int) -> Iterator[None]:
    process = netns.inside(namespace, functools.partial(_start, command))
    try:
        deadline = time.monotonic() + _START_S
        while not netns.inside(namespace, functools.partial(_is_listening, port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TrafficError(f"{command[0]} in {namespace} does not come up")
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def _is_listening(port: int) -> bool:
    shown = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, check=True)
    return bool(shown.stdout)
