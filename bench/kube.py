"""Leases in Kubernetes: what listing N nodes costs a node, and what beats and changes cost it.

The API server is the tests' own, in another process than the store; its nodes
have the size of real ones (50 images). The floor is one answer of all pages,
fetched and thrown away.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:
    from overlay.model.lease import LeaseView
    from overlay.plan.planner import Planner

_COLUMNS: Final = (
    *("nodes", "list to first view s", "CPU s", "fetched alone s", "requests", "MB on the wire"),
    "list / fetched",
    *(*MEMORY_COLUMNS, "one changed node: CPU ms"),
)
_SETTING: Final = "172.31.0.1/12"  # of the node that plans


def run(options: Options) -> Iterator[Table]:
    """Return one table."""
    sizes = options.pick((100,), (1000, 5000), (1000, 5000, 20000))
    rounds = options.pick(1, 3, 5)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for size in sizes:
        beats, changes = options.pick((100, 10), (BEATS, 300), (BEATS, 300))
        found = [_measure(size, beats, changes) for _ in range(rounds)]
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
                cells["change_cpu_ms"].spread(),
            )
        )
        records.append({"nodes": size, **{key: each.samples for key, each in cells.items()}})
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(size: int, beats: int, changes: int) -> Mapping[str, float]:
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
        beaten = child.usage
        child.go()
        before_s = child.hear()["cpu_s"]
        for number in range(changes):
            _change(api, 1 + number % (size - 1), number)
            after_s = child.hear()["cpu_s"]  # so that each is an event of its own
        return {
            "nodes": size,
            "wall_s": listed["wall_s"],
            "fetch_s": ready["fetch_s"],
            "mb": ready["bytes"] / 1e6,
            "requests": requests,
            **used(before, after, beaten),
            "change_cpu_ms": (after_s - before_s) / changes * 1000,
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
    _annotate(api, "node-0", f"{STEM}backend-type", "host-gw")


def _change(api: Any, number: int, count: int) -> None:
    """Give a node another VTEP, as one that was made anew has."""
    from tests.kube.cluster import STEM

    mac = f"06:00:{count >> 8:02x}:{count & 255:02x}:{number >> 8:02x}:{number & 255:02x}"
    data = f'{{"VNI":1,"VtepMAC":"{mac}"}}'
    _annotate(api, f"node-{number}", f"{STEM}backend-data", data)


def _annotate(api: Any, name: str, key: str, value: str) -> None:
    from tests.kube.cluster import NODES

    found = api.objects.get(NODES, name)
    meta = {**found["metadata"], "annotations": {**found["metadata"]["annotations"], key: value}}
    api.objects.replace(NODES, name, {**found, "metadata": meta}, None)


def _store(kubeconfig: str) -> None:
    """Run in the child: fetch alone, then watch, and say when which of them was done.

    After the beats it plans as well, and says how much CPU it has used whenever
    that is in step with a view.
    """
    from lightkube.resources.core_v1 import Node

    from overlay.store.kube import KubeLeaseStore
    from overlay.store.kube_client import KubeClient

    way = access(kubeconfig)
    store = KubeLeaseStore(way)
    print(json.dumps(fetched(KubeClient(way), Node, "nodes")), flush=True)
    sys.stdin.readline()
    started, stop = time.perf_counter(), threading.Event()
    seen: list[float] = []
    planners: list[Planner] = []

    def deliver(view: "LeaseView") -> None:
        if not seen:
            seen.append(time.perf_counter() - started)
            print(json.dumps({"wall_s": seen[0], "leases": len(view.leases)}), flush=True)
        elif not planners and _is_beaten(view):
            print("{}", flush=True)
            sys.stdin.readline()
            planners.append(_planner())
        if planners and planners[0].update(view.leases):
            print(json.dumps({"cpu_s": time.process_time()}), flush=True)

    threading.Timer(LIMIT_S, stop.set).start()
    store.watch(deliver, lambda _error: None, stop)


def _is_beaten(view: "LeaseView") -> bool:
    return any(each.attributes.backend_type == "host-gw" for each in view.leases.values())


def _planner() -> "Planner":
    """Return what plans for node-0."""
    from ipaddress import ip_interface

    from overlay.model.address import Family
    from overlay.model.lease import Lease, LeaseAttributes
    from overlay.model.network import parse_network_config
    from overlay.model.node import NodeIdentity, Underlay
    from overlay.model.subnet import parse_subnet
    from overlay.plan.planner import Planner, Site
    from overlay.plan.registry import load_backend

    config = parse_network_config('{"Network": "10.0.0.0/8"}')
    local = ip_interface(_SETTING)
    underlay = Underlay("eth0", 1500, {Family.IPV4: local}, {Family.IPV4: local.ip})
    backend = load_backend(config, NodeIdentity("node-0", "node-0"))
    own = Lease(parse_subnet("10.0.0.0/24"), LeaseAttributes("vxlan"))
    return Planner(Site(config, backend, own, underlay))


if __name__ == "__main__":
    _store(sys.argv[1])
