"""The CNI plugin as a runtime executes it: ADD and DEL, one by one and ten at a time.

One node in a namespace of its own, with etcd and ``overlayd``; ten pods'
namespaces. Both forms of the plugin, and beside them ``/bin/true`` executed
the same way: what any plugin costs. Nothing is written but the table.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import overlay_cni.plugin
from overlay.lab import netns
from overlay.lab.etcd import EmbeddedEtcd

CONFIG: Final = (
    '{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"},'
    ' "EnableIPv6": true, "IPv6Network": "fd00:1::/48"}'
)
AT_ONCE: Final = 10
_SHIM: Final = Path(__file__).resolve().parents[1] / "cni" / "shim"
_LIMIT_S: Final = 30.0


def _build(place: Path) -> dict[str, list[str]]:
    """Return the command of each form; the first is the floor."""
    subprocess.run(["make", "-s", "-C", str(_SHIM), f"BUILD={place}"], check=True)
    return {
        "/bin/true": ["/bin/true"],
        "C, static": [str(place / "overlay")],
        "Python": [sys.executable, "-ISE", overlay_cni.plugin.__file__],
    }


@contextlib.contextmanager
def _agent(place: Path) -> Iterator[Path]:
    """Run etcd and ``overlayd`` in the caller's namespace; yield the agent's socket."""
    import etcd3

    with EmbeddedEtcd(place / "etcd") as etcd:
        client = etcd3.client(host="127.0.0.1", port=int(etcd.endpoint.rsplit(":", 1)[1]))
        client.put("/coreos.com/network/config", CONFIG)
        client.close()
        state = place / "state"
        flags = {
            "etcd-endpoints": etcd.endpoint,
            "iface": "eth0",
            "node-name": "bench",
            "state-dir": state,
            "subnet-file": place / "subnet.env",
            "log-level": "warning",
        }
        program = Path(sys.executable).parent / "overlayd"
        agent = subprocess.Popen([str(program), *(f"--{k}={v}" for k, v in flags.items())])
        try:
            _await_ready(agent, place / "subnet.env")
            yield state / "cni.sock"
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(10)


def _await_ready(agent: "subprocess.Popen[bytes]", file: Path) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not file.exists():
        if agent.poll() is not None or time.monotonic() > deadline:
            msg = f"overlayd ended, or was not ready within {_LIMIT_S:.0f} s"
            raise RuntimeError(msg)
        time.sleep(0.01)


def _execute(argv: Sequence[str], command: str, container: str, pod: str, text: bytes) -> float:
    """Execute a plugin as a runtime does; return the seconds from exec to its end."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": str(netns.NETNS_DIR / pod),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod",
        "CNI_PATH": "/opt/cni/bin",
    }
    started = time.perf_counter()
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        with contextlib.suppress(BrokenPipeError):  # /bin/true does not read
            os.write(process.stdin.fileno(), text)  # type: ignore[union-attr]  # PIPE is given
        process.stdin.close()  # type: ignore[union-attr]  # likewise
        output = process.stdout.read()  # type: ignore[union-attr]  # likewise
        status = process.wait()
    elapsed = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{command}: {output.decode()}")
    return elapsed


def _rounds(
    argv: Sequence[str], pods: Sequence[str], text: bytes, rounds: int, workers: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of each ADD and of each DEL."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for pod in pods:
        free.put(pod)

    def attach_and_detach(number: int) -> tuple[float, float]:
        pod, container = free.get(), f"bench{number:059d}"
        add = _execute(argv, "ADD", container, pod, text)
        delete = _execute(argv, "DEL", container, pod, text)
        free.put(pod)
        return add, delete

    with ThreadPoolExecutor(workers) as pool:
        pairs = list(pool.map(attach_and_detach, range(rounds)))
    return [add for add, _ in pairs], [delete for _, delete in pairs]


def _quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def _shown(values: Sequence[float]) -> str:
    return f"{1000 * _quantile(values, 0.5):6.1f} /{1000 * _quantile(values, 0.99):6.1f}"


def _measure_inside(pods: Sequence[str], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        forms = _build(place)
        with _agent(place) as socket:
            document = {"cniVersion": "1.0.0", "name": "bench", "type": "overlay"}
            text = json.dumps({**document, "socket": str(socket)}).encode()
            for form, argv in forms.items():
                _rounds(argv, pods, text, AT_ONCE, 1)  # files into the cache
                for workers in (1, AT_ONCE):
                    add, delete = _rounds(argv, pods, text, rounds, workers)
                    print(f"{form:<10} {workers:7}   {_shown(add)}    {_shown(delete)}", flush=True)


@contextlib.contextmanager
def _namespaces() -> Iterator[tuple[str, list[str]]]:
    node = f"ovl-bench-{os.getpid()}"
    pods = [f"{node}-{number}" for number in range(AT_ONCE)]
    netns.add([node, *pods])
    try:
        netns.ip_batch(
            node,
            [
                "link set lo up",
                "link add eth0 type veth peer name eth1",
                "link set eth1 up",
                "link set eth0 up",
                "addr add 172.16.0.1/12 dev eth0",
                "addr add 2001:db8::1/64 dev eth0 nodad",
            ],
        )
        yield node, pods
    finally:
        netns.delete([node, *pods])


def main(rounds: int = 200) -> None:
    """Print the table: milliseconds, p50 / p99."""
    print("form       at once   ADD p50 / p99 ms   DEL p50 / p99 ms", flush=True)
    with _namespaces() as (node, pods):
        # A namespace of its own for all of it: plugin, agent and etcd are its children.
        command = [sys.executable, "-m", "bench.cni", str(rounds), *pods]
        subprocess.run([*netns.command_prefix(node), *command], check=True, timeout=600)


if __name__ == "__main__":
    _measure_inside(sys.argv[2:], int(sys.argv[1]))
