"""Policies of Kubernetes: what following N pods of a cluster costs a node, in time and memory.

The API server is the tests' own, in another process than the source; pods have
the size of real ones. The floor is the same pages fetched and thrown away.
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

_LOCAL: Final = 100  # pods of the node
_POLICIES: Final = 100
_SPACES: Final = 50
_COLUMNS: Final = (
    *("pods", "policies", "to first view s", "CPU s", "pods fetched alone s", "MB on the wire"),
    "view / fetched",
    *MEMORY_COLUMNS,
    "label seen ms",
)


def run(options: Options) -> Iterator[Table]:
    """Return one table."""
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for size in options.pick((300,), (1000, 5000), (1000, 5000, 20000)):
        found = [
            _measure(size, options.pick(50, BEATS, BEATS)) for _ in range(options.pick(1, 3, 5))
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
    with reading("bench.kube_policy", lambda api: _populate(api, size)) as (child, api):
        ready = child.hear()  # what fetching alone took
        before = child.usage
        child.go()
        listed = child.hear()
        after = child.usage
        _beat(api, size, beats)
        changed_at = time.time()
        _relabel(api)
        seen = child.hear()
        return {
            "wall_s": listed["wall_s"],
            "fetch_s": ready["fetch_s"],
            "mb": ready["bytes"] / 1e6,
            **used(before, after, child.usage),
            "label_ms": (seen["at"] - changed_at) * 1000,
        }


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
    from overlay.store.kube_policies import KubePolicySource

    way = access(kubeconfig)
    client = KubeClient(way)
    from lightkube.resources.core_v1 import Pod

    print(json.dumps(fetched(KubeClient(way), Pod, "pods")), flush=True)
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

    threading.Timer(LIMIT_S, stop.set).start()
    source.watch(deliver, lambda _error: None, stop)


if __name__ == "__main__":
    _source(sys.argv[1])
