"""Killed and started again: until the kernel is right, while packets flow.

While the agent is down, a lease is added whose key is listed last, and a
peer's route is deleted: when both are right, every peer was looked at. A peer
that is real receives a thousand packets a second all the while.
"""

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final, Self

from bench import agents, cold_join, floors, peers
from bench.bed import Bed, Node, bed
from bench.entries import KernelEntries, NotRightError, collected
from bench.options import AgentCommand, Options
from bench.series import Series, ratio, series
from bench.table import Table
from overlay.lab import netns
from overlay.model.address import Family

_EVERY_S: Final = 0.001
_PORT: Final = 8472  # flannel's, of VXLAN
_NUMBERS: Final = itertools.count()
_LAST: Final = 98 * 256  # 10.99.0.0 is behind all others as text
_COLUMNS: Final = (
    *("agent", "peers", "until right s", "CPU s", "listing alone s", "wall / listing"),
    "packets lost / sent",
)


@dataclass(frozen=True, slots=True)
class Restart:
    """Seconds from exec until right, CPU seconds, packets, and the floor in seconds."""

    wall_s: float
    cpu_s: float
    sent: int
    lost: int
    list_s: float


def run(options: Options) -> Iterator[Table]:
    """Return one table."""
    sizes = options.pick((50,), (1000, 5000), (1000, 5000, 20000))
    rounds = options.pick(1, 3, 5)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, object]] = []
    with bed(are_leases_own=options.are_leases_own) as test:
        for count in sizes:
            found: dict[str, list[Restart]] = {agent.name: [] for agent in options.agents}
            for _ in range(rounds):
                for agent in options.agents:
                    found[agent.name].append(_measure(agent, test, count))
            for name, runs in found.items():
                rows.append(_row(name, count, runs))
                samples = [asdict(each) for each in runs]
                records.append({"agent": name, "peers": count, "runs": samples})
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(agent: AgentCommand, test: Bed, count: int) -> Restart:
    test.write(peers.CONFIG, count)
    with (
        test.node() as node,
        netns.inside(node.namespace, KernelEntries) as entries,
        collected(),
        _real_peer(test) as received,
    ):
        list_s = floors.listing_s(test, node)
        with agents.running(agent, test, node) as first:
            cold_join.joined(entries, first, count)
            with netns.inside(node.namespace, _Sender) as sender:
                _break(test, node, first, count)
                with agents.running(agent, test, node) as second:
                    right_at = _repaired(entries, second, count)
                    cpu_s = second.usage.cpu_s
                    sent = sender.stop()
                    time.sleep(0.1)  # for the last packet to arrive
                    lost = sent - received()
    return Restart(right_at - second.started_at, cpu_s, sent, lost, list_s)


def _break(test: Bed, node: Node, running: agents.Running, count: int) -> None:
    running.end(signal.SIGKILL)
    test.put(test.pairs([_LAST]))
    netns.ip_batch(node.namespace, [f"route del {peers.peer(count // 2).subnet}"])


def _repaired(entries: KernelEntries, running: agents.Running, count: int) -> float:
    """Return when all was right; what an agent sets anew without need changes nothing."""
    entries.read()
    entries.expect({**peers.entries(range(count)), **peers.entries([_LAST])})
    try:
        # Not quiet for long: another agent sets what is there already over and over.
        right_at, _ = entries.wait(cold_join.LIMIT_S, lambda: running.is_alive)
        entries.wait(cold_join.LIMIT_S, lambda: running.is_alive, cold_join.QUIET_S)
        entries.verify()
    except NotRightError as exc:
        msg = f"{exc}\n{running.log_tail}"
        raise NotRightError(msg) from exc
    return right_at


class _Sender:
    """Sends to the real peer's subnet from the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stop = threading.Event()
        self._sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._socket.close()

    def stop(self) -> int:
        """Return how many packets were sent; repeating it is safe."""
        self._stop.set()
        self._thread.join()
        return self._sent

    def _run(self) -> None:
        target = (str(peers.peer(0).subnet.networks()[0].network_address + 1), 9)
        while not self._stop.wait(_EVERY_S):
            with contextlib.suppress(OSError):  # without a route: sent, and lost
                self._sent += 1
                self._socket.sendto(b"x", target)


@contextlib.contextmanager
def _real_peer(test: Bed) -> Iterator[Callable[[], int]]:
    """Make peer 0 real: a VXLAN device beside etcd; yield what returns the packets it received."""
    lease = peers.peer(0)
    public = lease.attributes.public[Family.IPV4]
    mac = lease.attributes.backend_data[Family.IPV4]["VtepMAC"]
    device = f"vx{next(_NUMBERS)}"
    options = f"id {peers.VNI} dstport {_PORT} local {public} nolearning"
    netns.ip_batch(
        test.namespace,
        [
            f"addr replace {public}/12 dev br0",
            f"link add {device} address {mac} type vxlan {options}",
            f"link set {device} up",
        ],
    )
    try:
        yield lambda: _received(test.namespace, device)
    finally:
        netns.ip_batch(test.namespace, [f"link del {device}"])


def _received(namespace: str, device: str) -> int:
    """Return the packets that came in by a device of a namespace."""
    shown = subprocess.run(
        ["ip", "-n", namespace, "-json", "-stats", "link", "show", device],
        capture_output=True,
        check=True,
    )
    return int(json.loads(shown.stdout)[0]["stats64"]["rx"]["packets"])


def _row(name: str, count: int, runs: list[Restart]) -> tuple[str, ...]:
    def of(field: str) -> Series:
        return series([float(getattr(each, field)) for each in runs])

    return (
        name,
        f"{count:,}",
        of("wall_s").spread(),
        of("cpu_s").spread(),
        of("list_s").spread(1, 3),
        ratio(of("wall_s").median, of("list_s").median),
        f"{sum(each.lost for each in runs)} / {sum(each.sent for each in runs)}",
    )
