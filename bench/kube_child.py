"""One reader of Kubernetes in a process of its own, beside the tests' API server in this one."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from bench.usage import Usage, usage

if TYPE_CHECKING:
    from overlay.store.kube_client import KubeClient
    from overlay.store.kube_config import KubeAccess

BEATS: Final = 2000  # status updates by kubelets; 5,000 nodes make 17 a second
LIMIT_S: Final = 120.0
MEMORY_COLUMNS: Final = (
    *("memory before MiB", "at peak MiB", "after MiB", f"CPU of {BEATS:,} beats s"),
)


class Child:
    """The reader: it says one line of JSON after another, and waits for ``go``."""

    def __init__(self, process: "subprocess.Popen[str]", told: IO[str], said: IO[str]) -> None:
        self._process = process
        self._told = told
        self._said = said

    @property
    def usage(self) -> Usage:
        """Return what it has used so far."""
        return usage(self._process.pid)

    def go(self) -> None:
        """Let it begin with its watch."""
        self._told.write("go\n")
        self._told.flush()

    def hear(self) -> Any:
        """Return what it says next."""
        return json.loads(self._said.readline())


@contextmanager
def reading(module: str, populate: Callable[[Any], None]) -> Iterator[tuple[Child, Any]]:
    """Yield a reader, which runs ``module`` with the path of a kubeconfig, and its API server.

    ``populate`` fills the server before the reader starts.
    """
    from tests.kube.api_server import ApiServer
    from tests.kube.certificates import make_authority

    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as folder:
        place = Path(folder)
        api = ApiServer(make_authority(place, "127.0.0.1"))
        try:
            populate(api)
            kubeconfig = api.kubeconfig(place / "kubeconfig")
            (place / "net-conf.json").write_text('{"Network": "10.0.0.0/8"}')
            with subprocess.Popen(
                (sys.executable, "-m", module, str(kubeconfig)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                try:
                    assert process.stdin is not None  # noqa: S101 - PIPE is given
                    assert process.stdout is not None  # noqa: S101 - likewise
                    yield Child(process, process.stdin, process.stdout), api
                finally:
                    process.kill()
        finally:
            api.close()


def used(before: Usage, after: Usage, beaten: Usage) -> Mapping[str, float]:
    """Return CPU and memory of the first listing, and CPU of the beats after it."""
    return {
        "cpu_s": after.cpu_s - before.cpu_s,
        "before_mib": before.rss_mib,
        "peak_mib": after.peak_mib,
        "after_mib": beaten.rss_mib,
        "beats_cpu_s": beaten.cpu_s - after.cpu_s,
    }


def access(kubeconfig: str) -> "KubeAccess":
    """Return the way of node-0 into the API, in the reader's process."""
    from overlay.store.kube_config import KubeAccess

    config = Path(kubeconfig).with_name("net-conf.json")
    return KubeAccess("node-0", kubeconfig=kubeconfig, net_config_path=config, timeout_s=30)


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
