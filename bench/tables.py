"""The kernel's tables by the number of peers: what filling them takes, and a packet then.

Three entries a peer as flannel has them, the same with routes of 1,024 metrics
as ours are, the same with the route's next hop an object of its own, and one
route a peer whose next hop names the tunnel's far end (a VXLAN device with
``external``). Packets go to peers at random, through the VXLAN device to a
device that throws them away.
"""

import functools
import json
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from bench import packer
from bench.bed import namespace
from bench.options import Options
from bench.series import series
from bench.table import Table
from overlay.lab import netns

LENGTH: Final = 26  # of a peer's subnet: 100,000 of them fit into 10.0.0.0/8
_SUBNET: Final = (10 << 24) + (1 << 20)
_PUBLIC: Final = (172 << 24) + (17 << 16)
_SHARED: Final = (169 << 24) + (254 << 16) + (1 << 8) + 1  # 169.254.1.1: every peer's gateway
_VNI: Final = 1
_SPREAD: Final = 20_000  # peers that packets go to, at most
_COLUMNS: Final = ("peers", "a peer has", "filled s", "us a peer", "CPU of a packet us")
_SETUP: Final = (
    "link add wire type bridge stp_state 0",  # without a port: what is sent is gone
    "link set wire up",
    "addr add 172.16.0.1/12 dev wire",
    "link set wire arp off",
    "link add tunnel type vxlan {kind} dstport 8472 nolearning",
    "addr add 10.0.0.1/32 dev tunnel",
    "link set tunnel up",
)
_KINDS: Final = {
    "three": "id 1 local 172.16.0.1",
    "spread": "id 1 local 172.16.0.1",
    "objects": "id 1 local 172.16.0.1",
    "metadata": "external",
}
_NAMES: Final = {
    "three": "route, neighbor, forwarding entry",
    "spread": "the same, a metric of 1,024",
    "objects": "the same, and a next hop object",
    "metadata": "route, next hop object with metadata",
}
# N routes of one metric without objects take N * N / 2 comparisons (decision 0012); with
# metadata 100,000 took 0.8 s in one run and 110 s in another.
_STEEP: Final = frozenset({"three", "metadata"})


def table(options: Options) -> Table:
    """Return the table; in namespaces of its own."""
    sizes = options.pick((100,), (10, 1_000, 20_000, 100_000), (10, 1_000, 20_000, 100_000))
    rounds = options.pick(1, 3, 5)
    count = options.pick(1_000, 50_000, 200_000)
    rows: list[tuple[str, ...]] = []
    records: list[Mapping[str, Any]] = []
    for size in sizes:
        ways = [way for way in _KINDS if way not in _STEEP or size <= _SPREAD]
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds if size <= _SPREAD else 1):
            for way in ways:
                found[way].append(_measure(way, size, count))
        for way, samples in found.items():
            filled, cost = (series(each) for each in zip(*samples, strict=True))
            each = f"{1e6 * filled.median / size:.1f}"
            rows.append((f"{size:,}", _NAMES[way], filled.spread(), each, cost.spread(1e6)))
            records.append(
                {"peers": size, "way": way, "filled_s": filled.samples, "cost_s": cost.samples}
            )
    return Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(way: str, size: int, count: int) -> tuple[float, float]:
    """Return the seconds of filling the tables, and of the processor for one packet."""
    with namespace() as name:
        netns.ip_batch(name, [line.format(kind=_KINDS[way]) for line in _SETUP])
        index = _index(name, "tunnel")
        messages = list(_entries(way, size, index))
        fill = functools.partial(_timed, lambda: packer.send(messages))
        filled_s = netns.inside(name, fill)
        return filled_s, netns.inside(name, functools.partial(_cost_s, name, size, count))


def _entries(way: str, size: int, index: int) -> Iterator[bytes]:
    if way == "metadata":
        yield packer.neighbor(_SHARED, _mac(size), index)
    for number in range(size):
        gateway, target, mac = subnet(number), _PUBLIC + number, _mac(number)
        if way == "metadata":
            yield packer.nexthop(number + 1, _SHARED, index, (_VNI, target))
            yield packer.route(gateway, LENGTH, nexthop=number + 1)
            continue
        yield packer.forwarding(mac, target, index)
        yield packer.neighbor(gateway, mac, index)
        if way == "objects":
            yield packer.nexthop(number + 1, gateway, index)
            yield packer.route(gateway, LENGTH, nexthop=number + 1)
        else:
            metric = 1 + number % packer.BUCKETS if way == "spread" else 0
            yield packer.route(gateway, LENGTH, index=index, gateway=gateway, metric=metric)


def _cost_s(name: str, size: int, count: int) -> float:
    """Return the seconds of one packet to a peer at random; all of them left by the wire."""
    chosen = random.Random(1)
    peers = [chosen.randrange(size) for _ in range(min(size, _SPREAD))]
    targets = [(socket.inet_ntoa(struct.pack("!I", subnet(each) + 5)), 9) for each in peers]
    rounds = -(-count // len(targets))
    before = _sent(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        started = time.thread_time()
        for _ in range(rounds):
            for target in targets:
                sender.sendto(b"x" * 64, target)
        spent = time.thread_time() - started
    total = rounds * len(targets)
    if _sent(name) - before < total:
        msg = f"of {total} packets {_sent(name) - before} were encapsulated"
        raise RuntimeError(msg)
    return spent / total


def subnet(number: int) -> int:
    """Return the first address of a peer's subnet."""
    return _SUBNET + (number << (32 - LENGTH))


def _mac(number: int) -> bytes:
    return bytes((2, 0)) + number.to_bytes(4, "big")


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _index(name: str, link: str) -> int:
    return int(_link(name, link)["ifindex"])


def _sent(name: str) -> int:
    return int(_link(name, "wire")["stats64"]["tx"]["packets"])


def _link(name: str, link: str) -> Any:
    command = ["ip", "-n", name, "-json", "-stats", "link", "show", link]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0]
