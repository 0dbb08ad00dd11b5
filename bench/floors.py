"""Floors: the same work with nothing around it, measured in the same run."""

import functools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from bench import packer, peers
from bench.bed import DEVICE, Bed, Node
from bench.series import Series, series
from overlay.lab import netns

_TUNNEL: Final = (
    "link add tunnel type vxlan id 1 dev {} dstport 8472 nolearning",
    "addr add 10.0.1.0/32 dev tunnel",
    "link set tunnel up",
)


def listing_s(bed: Bed, node: Node, *, away: bool = False) -> float:
    """Return the seconds that listing and parsing all leases takes, on a connection that is up.

    In a process of its own: gRPC starts threads that would stay in this namespace.
    """
    command = [sys.executable, "-m", "bench.floors", bed.endpoint(away=away)]
    done = subprocess.run(
        [*netns.command_prefix(node.namespace), *command], stdout=subprocess.PIPE, check=True
    )
    return float(json.loads(done.stdout))


def netlink_s(bed: Bed, first: int, last: int, rounds: int = 1) -> tuple[Series, Series]:
    """Return the seconds that packed netlink alone takes for the peers' three entries.

    To set and to delete those of ``first`` to ``last``, on top of the peers
    before them; packing counts, what is packed was made before. Nothing of ours
    is in it: ``packer`` alone. Each round in a node of its own.
    """
    pairs = []
    for _ in range(rounds):
        with bed.node() as node:
            netns.ip_batch(node.namespace, [line.format(DEVICE) for line in _TUNNEL])
            work = functools.partial(_netlink_inside, first, last)
            pairs.append(netns.inside(node.namespace, work))
    added, removed = zip(*pairs, strict=True)
    return series(added), series(removed)


def _netlink_inside(first: int, last: int) -> tuple[float, float]:
    index = socket.if_nametoindex("tunnel")
    packer.send(peers.packed(range(first), index))
    messages = list(peers.packed(range(first, last), index))
    gone = [packer.deletion(message) for message in reversed(messages)]
    return _timed(messages), _timed(gone)


def _timed(messages: Sequence[bytes]) -> float:
    started = time.perf_counter()
    packer.send(messages)
    return time.perf_counter() - started


def _listing(url: str) -> float:
    from overlay.store.etcd import EtcdLeaseStore
    from overlay.store.etcd_config import EtcdConfig

    store = EtcdLeaseStore(EtcdConfig(endpoints=(url,)))
    store.time_to_live(peers.peer(0))  # connects
    started = time.perf_counter()
    store.view()
    elapsed = time.perf_counter() - started
    store.close()
    return elapsed


if __name__ == "__main__":
    print(json.dumps(_listing(sys.argv[1])))
