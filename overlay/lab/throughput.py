"""TCP throughput pod to pod across nodes, against node to node, in turns.

Only the ratio says something: both share one machine's processors with
whatever else runs on it.
"""

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from overlay.lab import netns, processes
from overlay.lab.errors import LabError
from overlay.lab.fabric import Lab, silent
from overlay.model.address import Family, IPAddress

_PORT: Final = 5201
_START_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.01
_LISTEN: Final = "0A"  # TCP_LISTEN, net/tcp_states.h


class NoIperfError(LabError):
    """iperf3 is not on this machine."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Bits per second of each round."""

    underlay: tuple[float, ...]
    overlay: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Return the overlay's median as a part of the underlay's."""
        return statistics.median(self.overlay) / statistics.median(self.underlay)

    def __str__(self) -> str:
        under, over = (statistics.median(r) / 1e9 for r in (self.underlay, self.overlay))
        return (
            f"TCP pod to pod {over:.2f} Gbit/s, node to node {under:.2f} Gbit/s: {self.ratio:.0%}"
        )


def measure(
    lab: Lab,
    *,
    rounds: int = 2,
    seconds: float = 2.0,
    family: Family | None = None,
    progress: Callable[[str], None] = silent,
) -> Throughput:
    """Return the throughput between the first two nodes and their first pods, in turns.

    Raises NoIperfError, and LabError for a lab with fewer than two nodes or no pod.
    """
    if shutil.which("iperf3") is None:
        msg = "throughput is not measured: iperf3 is not on this machine"
        raise NoIperfError(msg)
    used = family if family is not None else lab.options.families[0]
    nodes = lab.topology.nodes[:2]
    first = {pod.node: pod for pod in reversed(lab.pods())}
    if len(nodes) < 2 or any(node.name not in first for node in nodes):
        msg = "throughput needs two nodes with a pod each"
        raise LabError(msg)
    client, server = nodes
    ends = {
        "node to node": (client.namespace, server.namespace, server.address(used)),
        "pod to pod": (
            first[client.name].namespace,
            first[server.name].namespace,
            first[server.name].addresses[used],
        ),
    }
    seen: dict[str, list[float]] = {what: [] for what in ends}
    for _ in range(rounds):
        for what, (source, target, address) in ends.items():
            with _server(target):
                seen[what].append(_run(source, address, seconds))
            progress(f"{what}: {seen[what][-1] / 1e9:.2f} Gbit/s")
    return Throughput(tuple(seen["node to node"]), tuple(seen["pod to pod"]))


@contextmanager
def _server(namespace: str) -> Iterator[None]:
    process = subprocess.Popen(
        [*netns.command_prefix(namespace), "iperf3", "--server", "--port", str(_PORT)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    named = processes.identify("iperf3", process.pid)
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not netns.inside(namespace, lambda: _is_listening(_PORT)):
            if process.poll() is not None or time.monotonic() > deadline:
                msg = "the iperf3 server does not come up"
                raise LabError(msg)
            time.sleep(_POLL_S)
        yield
    finally:
        processes.stop([named])
        process.wait()


def _is_listening(port: int) -> bool:
    for table in ("tcp", "tcp6"):
        with open(f"/proc/thread-self/net/{table}", encoding="ascii") as lines:  # noqa: PTH123 - the thread's, not the process's
            for line in lines:
                fields = line.split()
                if fields[3] == _LISTEN and fields[1].endswith(f":{port:04X}"):
                    return True
    return False


def _run(namespace: str, address: IPAddress, seconds: float) -> float:
    done = subprocess.run(
        [
            *netns.command_prefix(namespace),
            *("iperf3", "--client", str(address), "--port", str(_PORT)),
            *("--time", f"{seconds:g}", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 30,
    )
    try:
        report = json.loads(done.stdout)
        return float(report["end"]["sum_received"]["bits_per_second"])
    except (ValueError, KeyError) as exc:
        msg = f"iperf3 to {address}: {done.stdout[-300:]} {done.stderr[-300:]}".strip()
        raise LabError(msg) from exc
