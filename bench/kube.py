"""Leases in Kubernetes: what listing N nodes costs a node, and what its kubelets' beats cost it.

The API server is the tests' own, in another process than the store; its nodes
have the size of real ones (50 images). The floor is one answer of all pages,
fetched and thrown away.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.options import Options
from bench.series import Series, ratio, series
from bench.table import Table
from bench.usage import Usage, usage

if TYPE_CHECKING:
    from overlay.store.kube_client import KubeClient

_BEATS: Final = 2000  # status updates by kubelets; 5,000 nodes make 17 a second
_LIMIT_S: Final = 120.0
_COLUMNS: Final = (
    *("nodes", "list to first view s", "CPU s", "fetched alone s", "requests", "MB on the wire"),
    "list / fetched",
    *("memory before MiB", "at peak MiB", "after MiB", f"CPU of {_BEATS:,} beats s"),
)


def run(options: Options) -> Iterator[Table]:
    """Return one table."""
    sizes = options.pick((100,), (1000, 5000), (1000, 5000, 20000))
    rounds = options.pick(1, 3, 5)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for size in sizes:
        found = [_measure(size, options.pick(100, _BEATS, _BEATS)) for _ in range(rounds)]
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
    from tests.kube.api_server import ApiServer
    from tests.kube.certificates import make_authority
    from tests.kube.cluster import NODES

    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as folder:
        place = Path(folder)
        api = ApiServer(make_authority(place, "127.0.0.1"))
        try:
            for number in range(size):
                api.objects.create(NODES, node_of(number))
            kubeconfig = api.kubeconfig(place / "kubeconfig")
            (place / "net-conf.json").write_text('{"Network": "10.0.0.0/8"}')
            command = [sys.executable, "-m", "bench.kube", str(kubeconfig)]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as child:
                try:
                    return _talk(child, api, size, beats)
                finally:
                    child.kill()
        finally:
            api.close()


def _talk(child: "subprocess.Popen[str]", api: Any, size: int, beats: int) -> Mapping[str, float]:
    said, told = child.stdout, child.stdin
    if said is None or told is None:
        raise RuntimeError("the child has no pipes")
    ready = json.loads(said.readline())  # what fetching alone took
    before = usage(child.pid)
    asked = len(api.requests)
    told.write("go\n")
    told.flush()
    listed = json.loads(said.readline())
    after = usage(child.pid)
    requests = len([r for r in api.requests[asked:] if r.resource == "nodes"])
    _beat(api, size, beats)
    said.readline()  # the change behind the beats is there
    beaten = usage(child.pid)
    return {
        "nodes": size,
        "wall_s": listed["wall_s"],
        "fetch_s": ready["fetch_s"],
        "mb": ready["bytes"] / 1e6,
        "requests": requests,
        **_used(before, after, beaten),
    }


def _used(before: Usage, after: Usage, beaten: Usage) -> Mapping[str, float]:
    return {
        "cpu_s": after.cpu_s - before.cpu_s,
        "before_mib": before.rss_mib,
        "peak_mib": after.peak_mib,
        "after_mib": beaten.rss_mib,
        "beats_cpu_s": beaten.cpu_s - after.cpu_s,
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
    from overlay.store.kube_config import KubeAccess

    place = Path(kubeconfig).parent
    access = KubeAccess(
        "node-0", kubeconfig=kubeconfig, net_config_path=place / "net-conf.json", timeout_s=30
    )
    store = KubeLeaseStore(access)
    print(json.dumps(fetched(KubeClient(access), Node, "nodes")), flush=True)
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

    threading.Timer(_LIMIT_S, stop.set).start()
    store.watch(deliver, lambda _error: None, stop)


def fetched(client: "KubeClient", resource: Any, plural: str) -> Mapping[str, float]:
    """Return the seconds and bytes of all pages of one list, on a connection that is up."""
    from overlay.store.kube_client import EVERYWHERE, Kind

    kind = Kind(resource, plural, bytes)
    namespace = None if plural == "nodes" else EVERYWHERE
    client.call("list", kind, namespace=namespace, params={"limit": "1"})  # connects
    started, size, token = time.perf_counter(), 0, ""
    while True:
        params = {"limit": "500", **({"continue": token} if token else {})}
        body = client.call("list", kind, namespace=namespace, params=params)
        size += len(body)
        head = body[:4096].decode(errors="replace")
        _, found, rest = head.partition('"continue": "')
        if not found:
            return {"fetch_s": time.perf_counter() - started, "bytes": size}
        token = rest.partition('"')[0]


if __name__ == "__main__":
    _store(sys.argv[1])
