"""The runtimes under test: each starts and stops containers on one machine, by its own ways."""

import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Final, Protocol

from tests.kernel.netns import eventually
from tests.runtime.image import IMAGE
from tests.runtime.machine import BIN_DIR, DEADLINE_S, Machine

CONFLISTS: Final = Path(__file__).resolve().parents[2] / "cni" / "conflists"
DAEMON: Final = "containerd --config"
REFERENCE_PLUGINS: Final = Path("/usr/lib/cni")  # Debian's containernetworking-plugins


class Executor(Protocol):
    """What looks at the network from inside a container."""

    def execute(self, container: str, *words: str) -> str:
        """Return what a program says inside a container. Raises AssertionError."""
        ...


class Runtime(Executor, Protocol):
    """What a test asks of a runtime; containers are known by the names it gives them."""

    def start(self, container: str, *options: str) -> None:
        """Start a container and wait until it runs."""

    def stop(self, container: str) -> None:
        """Stop and remove a container."""

    def left(self) -> list[str]:
        """Return what the runtime still has of containers."""
        ...


class Podman:
    """podman with its CNI backend: one program for each command, and no daemon."""

    def __init__(self, machine: Machine, image: Path, cgroup: str) -> None:
        self._machine, self._cgroup = machine, cgroup
        place = machine.place / "podman"
        self.networks = place / "net.d"
        self.networks.mkdir(parents=True)
        shutil.copy(CONFLISTS / "podman.conflist", self.networks)
        config, storage = place / "containers.conf", place / "storage.conf"
        config.write_text(_podman_config(self.networks))
        storage.write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{place / "storage"}"\n'
            'runroot = "/run/containers/storage"\n'
        )
        self.environment = {
            "CONTAINERS_CONF": str(config),
            "CONTAINERS_STORAGE_CONF": str(storage),
        }
        self._podman("load", "--quiet", "--input", str(image))

    def start(self, container: str, *options: str, network: str = "overlay-podman") -> None:
        """``podman run --detach --network overlay-podman``."""
        where = ("--network", network, "--cgroup-parent", f"/{self._cgroup}")
        self._podman("run", "--detach", "--name", container, *where, *options, IMAGE)

    def execute(self, container: str, *words: str) -> str:
        """``podman exec``."""
        return self._podman("exec", container, *words)

    def stop(self, container: str) -> None:
        """``podman stop; podman rm``."""
        self._podman("stop", "--time", "0", container)
        self._podman("rm", container)

    def discard(self, container: str) -> None:
        """``podman rm --force``: also for one that never ran."""
        self._podman("rm", "--force", "--time", "0", container)

    def left(self) -> list[str]:
        """Return the containers, and the namespaces that podman names."""
        names = self._podman("ps", "--all", "--format", "{{.Names}}").split()
        return names + self._machine.run("ls", "/run/netns").split()

    def _podman(self, *words: str) -> str:
        return self._machine.run("podman", *words, environment=self.environment)


class Buildah:
    """buildah with podman's configuration and images; it runs a step of a build, and waits."""

    def __init__(self, podman: Podman, machine: Machine, cgroup: str) -> None:
        self._machine, self._cgroup = machine, cgroup
        self._environment = {**podman.environment, "BUILDAH_RUNTIME": "runc"}

    def run(self, container: str, *words: str) -> str:
        """``buildah from; buildah run --network overlay-podman; buildah rm``."""
        where = ("--cgroup-parent", f"/{self._cgroup}", "--isolation", "oci")
        self._buildah("from", "--pull-never", "--name", container, *where, IMAGE)
        try:
            return self._buildah("run", "--network", "overlay-podman", container, "--", *words)
        finally:
            self._buildah("rm", container)

    def _buildah(self, *words: str) -> str:
        return self._machine.run("buildah", *words, environment=self._environment)


def _podman_config(networks: Path) -> str:
    # Without CAP_SYS_RESOURCE no limit may be above the caller's own.
    files, processes = (
        min(20000, resource.getrlimit(kind)[1] % 2**63)
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
    )
    return f"""[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "/run/libpod"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{BIN_DIR}", "{REFERENCE_PLUGINS}"]
network_config_dir = "{networks}"
"""


class Containerd:
    """A containerd of the machine's own, asked through ``ctr``."""

    def __init__(self, machine: Machine, image: Path, cgroup: str) -> None:
        self._machine, self._cgroup = machine, cgroup
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        place = machine.place / "containerd"
        place.mkdir()
        config = place / "config.toml"
        # The CRI service would look for networks of its own; ctr does without it.
        config.write_text(
            f'version = 2\nroot = "{place / "root"}"\nstate = "/run/containerd"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        )
        log = place / "log"
        self.daemon = machine.start(log, "containerd", "--config", str(config))
        eventually(self._answers, timeout_s=DEADLINE_S, what="containerd's answer")
        self._ctr("images", "import", "--snapshotter", "native", str(image))

    def start(self, container: str, *options: str) -> None:
        """``ctr run --rm --cni``: it stays, for with ``--detach`` it would never ask for DEL."""
        run = ("run", "--rm", "--cni", "--snapshotter", "native", *options, IMAGE, container)
        log = self._machine.place / f"{container}.log"
        process = self._machine.start(log, "ctr", "--namespace", self._cgroup, *run)
        self._running[container] = process

        def runs() -> bool:
            assert process.poll() is None, log.read_text()
            tasks = self._ctr("task", "list").splitlines()
            return any(line.split()[::2] == [container, "RUNNING"] for line in tasks)

        eventually(runs, timeout_s=DEADLINE_S, what=f"container {container}")

    def execute(self, container: str, *words: str) -> str:
        """``ctr task exec``."""
        return self._ctr("task", "exec", "--exec-id", f"x{os.urandom(4).hex()}", container, *words)

    def stop(self, container: str) -> None:
        """``ctr task kill``, upon which ``ctr run`` asks for DEL and removes the container."""
        self._ctr("task", "kill", "--signal", "SIGKILL", container)
        self._running.pop(container).wait(DEADLINE_S)
        log = (self._machine.place / f"{container}.log").read_text()
        assert "failed" not in log, log

    def discard(self, container: str) -> None:
        """Remove what ``ctr run`` leaves when its network failed."""
        self._running.pop(container).wait(DEADLINE_S)
        if container in self._ctr("task", "list", "--quiet").split():
            self._ctr("task", "delete", "--force", container)
        self._ctr("container", "delete", container)

    def left(self) -> list[str]:
        """Return containers, tasks and snapshots of containers."""
        tasks = self._ctr("task", "list", "--quiet").split()
        return tasks + self._ctr("container", "list", "--quiet").split()

    def close(self) -> None:
        """End the daemon."""
        for pid, words in self._machine.processes().items():
            if words.startswith(DAEMON):
                self._machine.run("kill", str(pid))
        self.daemon.wait(DEADLINE_S)

    def _answers(self) -> bool:
        try:
            self._ctr("version")
        except AssertionError:
            return False
        return True

    def _ctr(self, *words: str) -> str:
        return self._machine.run("ctr", "--namespace", self._cgroup, *words)
