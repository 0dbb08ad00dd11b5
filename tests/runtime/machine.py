"""A node of a lab as a machine of its own, on which a runtime finds its usual paths.

Its namespaces: the node's network, and mounts and processes of its own. So a
runtime writes to ``/run``, ``/etc`` and ``/var/lib`` without touching the
host's, and what it starts cannot outlive the test, however that ends.
"""

import contextlib
import os
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from tests.kernel.netns import eventually

BIN_DIR: Final = "/opt/cni/bin"
CONFIG_DIR: Final = "/etc/cni/net.d"
DEADLINE_S: Final = 60

# $1 the agent's state directory, $2 plugins, $3 network configurations. Layers
# over what is there, since the host may lack the directories.
_MOUNTS: Final = f"""set -eu
exec 3<"$1" 4<"$2" 5<"$3"
mount -t tmpfs tmpfs /run
for folder in etc opt var/lib; do
    mkdir -p /run/layers/$folder/upper /run/layers/$folder/work
    mount -t overlay -o "lowerdir=/$folder,upperdir=/run/layers/$folder/upper,workdir=/run/layers/$folder/work" overlay "/$folder"
done
rm -rf {CONFIG_DIR}
mkdir -p /run/netns /run/overlay {BIN_DIR} {CONFIG_DIR}
mount --bind /proc/self/fd/3 /run/overlay
mount --bind /proc/self/fd/4 {BIN_DIR}
mount --bind /proc/self/fd/5 {CONFIG_DIR}
exec 3<&- 4<&- 5<&-
echo ready
# So that the kernel reaps what is orphaned, this being process 1.
exec env --ignore-signal=CHLD cat
"""  # noqa: E501 - a shell's line


class Machine:
    """One node, ``place`` being its directory on the host; it runs until ``close``."""

    def __init__(self, name: str, namespace: str, agent_state: Path, place: Path) -> None:
        self.name, self.place = name, place
        self.state = agent_state
        self.plugins, self.networks = place / "bin", place / "net.d"
        for folder in (self.plugins, self.networks):
            folder.mkdir(parents=True)
        inputs = (agent_state, self.plugins, self.networks)
        # It ends with its standard input, so also when the test's own process is killed.
        self._holder = subprocess.Popen(
            [
                *("nsenter", f"--net=/run/netns/{namespace}"),
                *("unshare", "--mount", "--propagation", "private"),
                *("--pid", "--fork", "--mount-proc", "--kill-child"),
                *("sh", "-c", _MOUNTS, "sh", *map(str, inputs)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            _, errors = self._holder.communicate(timeout=DEADLINE_S)
            msg = f"machine {name}: {errors.decode(errors='replace')}"
            raise AssertionError(msg)

    def close(self) -> None:
        """End every process of the machine, and with the last one its mounts."""
        self._holder.communicate(timeout=DEADLINE_S)

    def path(self, name: str) -> Path:
        """Return where a file of the machine is found from outside."""
        return Path(f"/proc/{self._holder.pid}/root{name}")

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> str:
        """Return a program's standard output. Raises AssertionError with its words."""
        # Not a pipe: what the program leaves behind may hold it open.
        log = self.place / "stderr"
        with log.open("w+") as errors:
            done = subprocess.run(
                self._command(words),
                env=_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                check=False,
                timeout=DEADLINE_S,
            )
        if done.returncode != 0:
            msg = f"{self.name}: {' '.join(words)}: status {done.returncode}: {log.read_text()}"
            raise AssertionError(msg)
        return done.stdout

    def start(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start a program with its output in ``log``."""
        with log.open("wb") as output:
            return subprocess.Popen(
                self._command(words),
                env=_environment(None),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> dict[int, str]:
        """Return what runs on the machine by pid (there), beside its process 1."""
        found = {}
        for line in self.run("ps", "-e", "-o", "pid=,args=").splitlines():
            pid, words = line.split(None, 1)
            if pid != "1" and not words.startswith("ps -e "):
                found[int(pid)] = words
        return found

    def _command(self, words: tuple[str, ...]) -> list[str]:
        spaces = Path("/proc", str(self._holder.pid), "ns")
        pid = spaces / "pid_for_children"
        enter = [f"--mount={spaces / 'mnt'}", f"--net={spaces / 'net'}", f"--pid={pid}"]
        return ["nsenter", *enter, *words]


def remove_cgroups(name: str) -> None:
    """Remove the control groups called ``name``. Raises AssertionError for one in use."""
    # Unlike a glob, a walk passes over groups of other tests that go meanwhile.
    found = [Path(place, name) for place, names, _ in os.walk("/sys/fs/cgroup") if name in names]
    for top in found:
        for folder, _, _ in os.walk(top, topdown=False):
            # Removal is over only when the last process is reaped.
            eventually(partial(_is_removed, Path(folder)), what=f"removal of {folder}")


def _is_removed(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": "/root", **(more or {})}
