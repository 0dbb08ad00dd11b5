"""Floors: the same work with nothing around it, measured in the same run."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence

from bench import peers
from bench.bed import Bed, Node
from overlay.kernel.netlink import NetlinkKernel
from overlay.lab import netns
from overlay.model.kernel import Op
from overlay.plan.diff import diff
from overlay.plan.planner import desired


def listing_s(bed: Bed, node: Node, *, away: bool = False) -> float:
    """Return the seconds that listing and parsing all leases takes, on a connection that is up.

    In a process of its own: gRPC starts threads that would stay in this namespace.
    """
    command = [sys.executable, "-m", "bench.floors", bed.endpoint(away=away)]
    done = subprocess.run(
        [*netns.command_prefix(node.namespace), *command], stdout=subprocess.PIPE, check=True
    )
    return float(json.loads(done.stdout))


def netlink_s(bed: Bed, first: int, last: int) -> tuple[float, float]:
    """Return the seconds that packed netlink alone takes for the peers' entries.

    To set and to delete those of ``first`` to ``last``, on top of the peers before
    them; the requests are packed within that time, but planned before.
    """
    with bed.node() as node:
        return netns.inside(node.namespace, lambda: _netlink_inside(first, last))


def _netlink_inside(first: int, last: int) -> tuple[float, float]:
    site = peers.site()
    before = desired(site, peers.leases(range(first))).objects.values()
    after = desired(site, peers.leases(range(last))).objects.values()
    with contextlib.closing(NetlinkKernel()) as kernel:
        _timed(kernel, diff(before, ()))
        return _timed(kernel, diff(after, before)), _timed(kernel, diff(before, after))


def _timed(kernel: NetlinkKernel, ops: Sequence[Op]) -> float:
    started = time.perf_counter()
    failures = kernel.apply(ops)
    elapsed = time.perf_counter() - started
    if failures:
        raise RuntimeError(str(failures[0]))
    return elapsed


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
