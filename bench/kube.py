"""Leases in Kubernetes: what listing N nodes costs a node, and what its kubelets' beats cost it.

The API server is the tests' own, in another process than the store; its nodes
have the size of real ones (50 images). The floor is one answer of all pages,
fetched and thrown away.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bench.kube_child import (
    BEATS,
    LIMIT_S,
    MEMORY_COLUMNS,
    access,
    fetched,
    reading,
    used,
)
from bench.options import Options
from bench.series import Series, ratio, series
from bench.table import Table

_COLUMNS: Final = (
    *("nodes", "list to first view s", "CPU s", "fetched alone s", "requests", "MB on the wire"),
    "list / fetched",
    *MEMORY_COLUMNS,
)


def run(options: Options) -> Iterator[Table]:
    """Return one table."""
    sizes = options.pick((100,), (1000, 5000), (1000, 5000, 20000))
    rounds = options.pick(1, 3, 5)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for size in sizes:
        found = [_measure(size, options.pick(100, BEATS, BEATS)) for _ in range(rounds)]
        cells: dict[str, Series] = {
            key: series([each[key] for each in found]) for key in found[0] if key != "nodes"
        }
        rows.append(
            (
                f"{size:,}",
                cells["wall_s"].spread(),
                cells["cpu_s"].spread(),
                cells["fetch_s"].spread(),
                f"{cells['requests'].median:.0f}",
                f"{cells['mb'].median:.1f}",
                ratio(cells["wall_s"].median, cells["fetch_s"].median),
                f"{cells['before_mib'].median:.0f}",
                cells["peak_mib"].spread(1, 0),
                cells["after_mib"].spread(1, 0),
                cells["beats_cpu_s"].spread(),
            )
        )
        records.append({"nodes": size, **{key: each.samples for key, each in cells.items()}})
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(size: int, beats: int) -> Mapping[str, float]:
    """Return what one store took, in a process of its own."""

    def populate(api: Any) -> None:
        from tests.kube.cluster import NODES

        for number in range(size):
            api.objects.create(NODES, node_of(number))

    with reading("bench.kube", populate) as (child, api):
        ready = child.hear()  # what fetching alone took
        before = child.usage
        asked = len(api.requests)
        child.go()
        listed = child.hear()
        after = child.usage
        requests = len([r for r in api.requests[asked:] if r.resource == "nodes"])
        _beat(api, size, beats)
        child.hear()  # the change behind the beats is there
        return {
            "nodes": size,
            "wall_s": listed["wall_s"],
            "fetch_s": ready["fetch_s"],
            "mb": ready["bytes"] / 1e6,
            "requests": requests,
            **used(before, after, child.usage),
        }


def node_of(number: int) -> Any:
    """Return a Node of the size of a real one, with what flannel writes there."""
    from tests.kube.cluster import flannels, node

    digest = f"{number:064x}"
    images = [
        {
            "names": [f"registry.example/team/image-{n}@sha256:{digest}", f"image-{n}:v1.{n}"],
            "sizeBytes": 123456789,
        }
        for n in range(50)
    ]
    high, low = divmod(number, 250)
    mac = f"02:00:00:00:{high:02x}:{low:02x}"
    found = node(
        f"node-{number}", f"10.{high}.{low}.0/24", **flannels(f"172.16.{high}.{low + 1}", mac)
    )
    found["status"]["images"] = images
    return found


def _beat(api: Any, size: int, beats: int) -> None:
    """Write as kubelets do, then change one lease, by which the end is seen."""
    from tests.kube.cluster import NODES, STEM

    for number in range(beats):
        name = f"node-{1 + number % (size - 1)}"
        found = api.objects.get(NODES, name)
        condition = {"type": "Ready", "lastHeartbeatTime": str(number)}
        status = {**found["status"], "conditions": [condition]}
        api.objects.replace(NODES, name, {**found, "status": status}, None)
    found = api.objects.get(NODES, "node-0")
    notes = {**found["metadata"]["annotations"], f"{STEM}backend-type": "host-gw"}
    meta = {**found["metadata"], "annotations": notes}
    api.objects.replace(NODES, "node-0", {**found, "metadata": meta}, None)


def _store(kubeconfig: str) -> None:
    """Run in the child: fetch alone, then watch, and say when which of them was done."""
    from lightkube.resources.core_v1 import Node

    from overlay.model.lease import LeaseView
    from overlay.store.kube import KubeLeaseStore
    from overlay.store.kube_client import KubeClient

    way = access(kubeconfig)
    store = KubeLeaseStore(way)
    print(json.dumps(fetched(KubeClient(way), Node, "nodes")), flush=True)
    sys.stdin.readline()
    started, stop = time.perf_counter(), threading.Event()
    seen: list[float] = []

    def deliver(view: LeaseView) -> None:
        if not seen:
            seen.append(time.perf_counter() - started)
            print(json.dumps({"wall_s": seen[0], "leases": len(view.leases)}), flush=True)
        elif any(x.attributes.backend_type == "host-gw" for x in view.leases.values()):
            print("{}", flush=True)
            stop.set()

    threading.Timer(LIMIT_S, stop.set).start()
    store.watch(deliver, lambda _error: None, stop)


if __name__ == "__main__":
    _store(sys.argv[1])
