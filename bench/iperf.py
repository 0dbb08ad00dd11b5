"""iperf3 between two namespaces."""

import contextlib
import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from bench import echo
from overlay.lab import netns
from overlay.model.errors import OverlayError

PORT: Final = 5201
_SMALL: Final = 64  # bytes in a datagram: packets are counted, not bits
_LEAST: Final = "2M"
_START_S: Final = 10.0
_BUSY: Final = "busy"  # in what iperf3 says


class TrafficError(OverlayError):
    """Traffic did not flow, or a program for it is missing."""


@contextlib.contextmanager
def servers(namespace: str) -> Iterator[None]:
    """Run an iperf3 and an echo server in a namespace; they have ended after the block."""
    if shutil.which("iperf3") is None:
        raise TrafficError("iperf3 is not on this machine; `make setup` installs it")
    commands = (
        ["iperf3", "--server", "--port", str(PORT)],
        [sys.executable, "-m", "bench.echo", "serve"],
    )
    with contextlib.ExitStack() as stack:
        for command in commands:
            process = netns.inside(namespace, functools.partial(_start, command))
            stack.callback(process.wait)
            stack.callback(process.kill)
        deadline = time.monotonic() + _START_S
        while netns.inside(namespace, _listening) < len(commands):
            if time.monotonic() > deadline:
                raise TrafficError(f"servers in {namespace} do not come up")
            time.sleep(0.02)
        yield


def tcp(namespace: str, address: str, seconds: int, streams: int) -> float:
    """Return the bits per second that arrive, in ``streams`` connections together.

    In 0 seconds, a few megabytes are sent. Raises TrafficError.
    """
    report = _run(namespace, address, seconds, "--parallel", str(streams))
    return float(report["end"]["sum_received"]["bits_per_second"])


def udp(namespace: str, address: str, seconds: int) -> float:
    """Return the datagrams of 64 bytes that arrive in a second, sent as fast as it goes.

    In 0 seconds, a few megabytes are sent. Raises TrafficError.
    """
    report = _run(namespace, address, seconds, "--udp", "--bitrate", "0", "--length", str(_SMALL))
    total = report["end"]["sum"]
    return float((total["packets"] - total["lost_packets"]) / total["seconds"])


def echoes(namespace: str, address: str, seconds: float) -> echo.Echoes:
    """Return round trips and rates. Raises TrafficError."""
    command = [sys.executable, "-m", "bench.echo", "ask", address, str(seconds)]
    done = netns.inside(
        namespace, lambda: subprocess.run(command, capture_output=True, text=True, check=False)
    )
    if done.returncode:
        raise TrafficError(f"echo to {address}: {done.stderr.strip()[-300:]}")
    return echo.Echoes(**json.loads(done.stdout))


def _run(namespace: str, address: str, seconds: int, *more: str) -> Any:
    command = ["iperf3", "--client", address, "--port", str(PORT), "--json", *more]
    command += ["--time", str(seconds)] if seconds else ["--bytes", _LEAST]
    run = functools.partial(
        subprocess.run, command, capture_output=True, text=True, timeout=seconds + 30
    )
    deadline = time.monotonic() + _START_S
    while True:
        done = netns.inside(namespace, run)
        report = json.loads(done.stdout or "{}")
        problem = report.get("error", "")
        if done.returncode == 0 and not problem:
            return report
        # The server lags behind a flood of datagrams, or with its farewell.
        if _BUSY not in problem or time.monotonic() > deadline:
            raise TrafficError(f"iperf3 to {address}: {problem} {done.stderr[-300:]}")
        time.sleep(0.1)


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def _listening() -> int:
    filters = f"sport = :{PORT} or sport = :{echo.PORT}"
    shown = subprocess.run(["ss", "-Hltn", filters], capture_output=True, check=True)
    return len(shown.stdout.splitlines())
