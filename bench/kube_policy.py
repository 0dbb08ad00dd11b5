"""Policies of Kubernetes: what following N pods of a cluster costs a node, in time and memory.

The API server is the tests' own, in another process than the source; pods have
the size of real ones. The floor is the same pages fetched and thrown away.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench.kube import fetched
from bench.options import Options
from bench.series import Series, ratio, series
from bench.table import Table
from bench.usage import usage

_BEATS: Final = 2000  # status updates by kubelets that say nothing of any policy
_LOCAL: Final = 100  # pods of the node
_POLICIES: Final = 100
_SPACES: Final = 50
_LIMIT_S: Final = 120.0
_COLUMNS: Final = (
    *("pods", "policies", "to first view s", "CPU s", "pods fetched alone s", "MB on the wire"),
    "view / fetched",
    *("memory before MiB", "at peak MiB", "after MiB", f"CPU of {_BEATS:,} beats s"),
    "label seen ms",
)


def run(options: Options) -> Iterator[Table]:
    """Return one table."""
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for size in options.pick((300,), (1000, 5000), (1000, 5000, 20000)):
        found = [
            _measure(size, options.pick(50, _BEATS, _BEATS)) for _ in range(options.pick(1, 3, 5))
        ]
        cells: dict[str, Series] = {key: series([each[key] for each in found]) for key in found[0]}
        rows.append(
            (
                f"{size:,}",
                str(_POLICIES),
                cells["wall_s"].spread(),
                cells["cpu_s"].spread(),
                cells["fetch_s"].spread(),
                f"{cells['mb'].median:.1f}",
                ratio(cells["wall_s"].median, cells["fetch_s"].median),
                f"{cells['before_mib'].median:.0f}",
                cells["peak_mib"].spread(1, 0),
                cells["after_mib"].spread(1, 0),
                cells["beats_cpu_s"].spread(),
                cells["label_ms"].spread(1, 0),
            )
        )
        records.append({"pods": size, **{key: each.samples for key, each in cells.items()}})
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(size: int, beats: int) -> Mapping[str, float]:
    """Return what one source took, in a process of its own."""
    from tests.kube.api_server import ApiServer
    from tests.kube.certificates import make_authority

    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as folder:
        place = Path(folder)
        api = ApiServer(make_authority(place, "127.0.0.1"))
        try:
            _populate(api, size)
            command = [
                *(sys.executable, "-m", "bench.kube_policy"),
                str(api.kubeconfig(place / "kubeconfig")),
            ]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as child:
                try:
                    return _talk(child, api, size, beats)
                finally:
                    child.kill()
        finally:
            api.close()


def _populate(api: Any, size: int) -> None:
    from tests.kube.objects import Place

    for space in range(_SPACES):
        labels = {"team": f"t{space % 10}"}
        api.objects.create(
            Place("namespaces"), {"metadata": {"name": f"s{space}", "labels": labels}}
        )
    for number in range(_POLICIES):
        peer = {"podSelector": {"matchLabels": {"app": f"a{number % 40}"}}}
        spec = {
            "podSelector": {"matchLabels": {"tier": f"r{number % 5}"}},
            "ingress": [{"from": [peer], "ports": [{"port": 8080}]}],
        }
        place = Place("networkpolicies", f"s{number % _SPACES}")
        api.objects.create(place, {"metadata": {"name": f"p{number}"}, "spec": spec})
    for number in range(size):
        api.objects.create(Place("pods", f"s{number % _SPACES}"), pod_of(number))


def pod_of(number: int) -> Any:
    """Return a Pod of the size of a real one: 8 KB, most of it of no interest here."""
    node = "node-0" if number < _LOCAL else f"node-{1 + number % 499}"
    containers = [
        {
            "name": f"c{n}",
            "image": f"registry.example/team/image-{n}@sha256:{number:064x}",
            "env": [{"name": f"VARIABLE_{k}", "value": "x" * 60} for k in range(18)],
            "ports": [{"name": "http", "containerPort": 8080}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        }
        for n in range(3)
    ]
    high, low = divmod(number, 250)
    return {
        "metadata": {
            "name": f"pod-{number}",
            "labels": {
                "app": f"a{number % 40}",
                "tier": f"r{number % 5}",
                "pod-template-hash": f"{number % 300:x}",
                "controller-revision": f"{number % 300}",
            },
            "annotations": {f"example/note-{n}": "y" * 80 for n in range(12)},
        },
        "spec": {"nodeName": node, "containers": containers},
        "status": {"phase": "Running", "podIPs": [{"ip": f"10.{high}.0.{low + 2}"}]},
    }


def _talk(child: "subprocess.Popen[str]", api: Any, size: int, beats: int) -> Mapping[str, float]:
    said, told = child.stdout, child.stdin
    if said is None or told is None:
        raise RuntimeError("the child has no pipes")
    ready = json.loads(said.readline())  # what fetching alone took
    before = usage(child.pid)
    told.write("go\n")
    told.flush()
    listed = json.loads(said.readline())
    after = usage(child.pid)
    _beat(api, size, beats)
    changed_at = time.time()
    _relabel(api)
    seen = json.loads(said.readline())
    beaten = usage(child.pid)
    return {
        "wall_s": listed["wall_s"],
        "fetch_s": ready["fetch_s"],
        "mb": ready["bytes"] / 1e6,
        "cpu_s": after.cpu_s - before.cpu_s,
        "before_mib": before.rss_mib,
        "peak_mib": after.peak_mib,
        "after_mib": beaten.rss_mib,
        "beats_cpu_s": beaten.cpu_s - after.cpu_s,
        "label_ms": (seen["at"] - changed_at) * 1000,
    }


def _beat(api: Any, size: int, beats: int) -> None:
    """Write as kubelets do: what changes is of no interest to policies."""
    from tests.kube.objects import Place

    for number in range(beats):
        index = _LOCAL + number % (size - _LOCAL)
        place = Place("pods", f"s{index % _SPACES}")
        found = api.objects.get(place, f"pod-{index}")
        status = {**found["status"], "conditions": [{"type": "Ready", "probe": number}]}
        api.objects.replace(place, f"pod-{index}", {**found, "status": status}, None)


def _relabel(api: Any) -> None:
    from tests.kube.objects import Place

    place = Place("pods", f"s{_LOCAL % _SPACES}")
    found = api.objects.get(place, f"pod-{_LOCAL}")
    labels = {**found["metadata"]["labels"], "app": "other"}
    meta = {**found["metadata"], "labels": labels}
    api.objects.replace(place, f"pod-{_LOCAL}", {**found, "metadata": meta}, None)


def _source(kubeconfig: str) -> None:
    """Run in the child: fetch alone, then watch, and say when which of them was done."""
    from overlay.model.policy_view import PolicyView
    from overlay.store.kube_client import KubeClient
    from overlay.store.kube_config import KubeAccess
    from overlay.store.kube_policies import KubePolicySource

    place = Path(kubeconfig).parent
    access = KubeAccess(
        "node-0", kubeconfig=kubeconfig, net_config_path=place / "net-conf.json", timeout_s=30
    )
    client = KubeClient(access)
    from lightkube.resources.core_v1 import Pod

    print(json.dumps(fetched(KubeClient(access), Pod, "pods")), flush=True)
    source = KubePolicySource(client, "node-0", cluster=False)
    sys.stdin.readline()
    started, stop = time.perf_counter(), threading.Event()
    is_told = False

    def deliver(view: PolicyView) -> None:
        nonlocal is_told
        if not is_told:
            is_told = True
            wall_s = time.perf_counter() - started
            print(json.dumps({"wall_s": wall_s, "pods": len(view.pods)}), flush=True)
        elif any(pod.labels.get("app") == "other" for pod in view.pods.values()):
            print(json.dumps({"at": time.time()}), flush=True)
            stop.set()

    threading.Timer(_LIMIT_S, stop.set).start()
    source.watch(deliver, lambda _error: None, stop)


if __name__ == "__main__":
    _source(sys.argv[1])
