"""What the agent's container takes on one node of N: for requests and limits of the manifests.

The image as the tests build it, run by containerd as the DaemonSet says, but
without its limits; the API server is the tests' own. Nodes have the size of
real ones, and their kubelets write every 5 minutes.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.kube import node_of
from bench.options import Options
from bench.table import Table
from overlay.model.errors import OverlayError

if TYPE_CHECKING:
    from tests.runtime.daemonset import ManifestPod
    from tests.runtime.kube_site import KubeSite

_COLUMNS: Final = (
    *("nodes", "start to last route s", "CPU of it s", "memory at peak MiB"),
    *("memory after MiB", "whole group at peak MiB", "CPU of a beating cluster m"),
)
_OWN: Final = 1  # the node that is measured
_LIMIT_S: Final = 300.0
_BEAT_S: Final = 300.0  # between status updates of one kubelet that has no news
_UNLIMITED: Final = {"cpu": "64", "memory": "8192Mi"}


def run(options: Options) -> Iterator[Table]:
    """Return one table. Raises OverlayError where image or manifests cannot be made."""
    sizes = options.pick((100,), (100, 1000, 5000), (100, 1000, 5000))
    idle_s = options.pick(5.0, 60.0, 60.0)
    records = [_measure(size, idle_s) for size in sizes]
    rows = [
        (
            f"{record['nodes']:,.0f}",
            f"{record['wall_s']:.1f}",
            f"{record['cpu_s']:.2f}",
            f"{record['peak_mib']:.0f}",
            f"{record['after_mib']:.0f}",
            f"{record['group_mib']:.0f}",
            f"{record['idle_m']:.1f}",
        )
        for record in records
    ]
    yield Table(_COLUMNS, tuple(rows), tuple(records))


def _measure(size: int, idle_s: float) -> dict[str, float]:
    from tests.manifests.renderers import kubectl
    from tests.runtime.build import build_image, missing
    from tests.runtime.kube_site import KubeSite

    reason = missing() or ("needs the command kubectl" if kubectl() is None else None)
    if reason is not None:
        raise OverlayError(f"bench container: {reason}")
    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as folder, ExitStack() as stack:
        place = Path(folder)
        (place / "build").mkdir()
        image = build_image(place / "build")
        site = KubeSite(place, image, stack, nodes=(_OWN,))
        site.objects["ConfigMap/overlay-network"]["data"]["net-conf.json"] = (
            '{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}'
        )
        site.daemon["containers"][0]["resources"]["limits"] = _UNLIMITED
        _register(site, size)
        return _run(site, size, idle_s)


def _register(site: "KubeSite", size: int) -> None:
    from tests.kube.cluster import NODES, node

    site.hub.api.objects.create(NODES, node(f"n{_OWN}", "10.255.255.0/24"))
    for number in range(size - 1):
        site.hub.api.objects.create(NODES, node_of(number))


def _run(site: "KubeSite", size: int, idle_s: float) -> dict[str, float]:
    agent = site.agent(_OWN)
    started = time.perf_counter()
    agent.start()
    netns = site.hub.host(_OWN).netns
    while netns.ip("route").count("onlink") < size - 1:
        agent.is_running()
        if time.perf_counter() - started > _LIMIT_S:
            raise OverlayError(f"bench container: no {size - 1} routes within {_LIMIT_S} s")
        time.sleep(0.1)
    wall_s, group = time.perf_counter() - started, agent.cgroup()
    joined_s = group.cpu_s()
    stop = threading.Event()
    threads = [
        threading.Thread(target=_beat, args=(site.hub.api, size, stop)),
        *(
            threading.Thread(target=_probe, args=(agent, name, stop))
            for name in ("readiness", "liveness")
        ),
    ]
    for thread in threads:
        thread.start()
    stop.wait(idle_s)
    stop.set()
    for thread in threads:
        thread.join()
    idle_cpu_s = group.cpu_s() - joined_s
    found = {
        "nodes": float(size),
        "wall_s": wall_s,
        "cpu_s": joined_s,
        "peak_mib": _mib(agent, "VmHWM"),
        "after_mib": _mib(agent, "VmRSS"),
        "group_mib": group.memory_peak() / (1 << 20),
        "idle_m": 1000 * idle_cpu_s / idle_s,
    }
    agent.stop()
    return found


def _mib(agent: "ManifestPod", key: str) -> float:
    return int(agent.process_status()[key].split()[0]) / 1024


def _probe(agent: "ManifestPod", name: str, stop: threading.Event) -> None:
    """Ask as often as a kubelet would, until ``stop``."""
    (told,) = agent.spec["containers"]
    while not stop.wait(told[f"{name}Probe"]["periodSeconds"]):
        agent.probe(name)


def _beat(api: Any, size: int, stop: threading.Event) -> None:
    """Write as all kubelets together do, until ``stop``."""
    from tests.kube.cluster import NODES

    number = 0
    while not stop.wait(_BEAT_S / size):
        name = f"node-{number % (size - 1)}"
        found = api.objects.get(NODES, name)
        condition = {"type": "Ready", "lastHeartbeatTime": str(number)}
        status = {**found["status"], "conditions": [condition]}
        api.objects.replace(NODES, name, {**found, "status": status}, None)
        number += 1
