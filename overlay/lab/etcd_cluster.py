"""etcd as a cluster of members, each a process with a data directory of its own.

Members can be killed, hung and started one by one through ``members``; what
concerns all of them is here.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from overlay.lab import netns
from overlay.lab.errors import LabError
from overlay.lab.etcd import EmbeddedEtcd, find_etcd_tool
from overlay.lab.etcd_gateway import EtcdGateway

_TOOL_TIMEOUT_S: Final = 30.0


class EtcdCluster:
    """One or more members in ``namespace``.

    Peers talk over the namespace's loopback, each on the port above the one
    of its client URL.
    """

    def __init__(self, data_dir: Path, *, client_urls: Sequence[str], namespace: str) -> None:
        self._data_dir = data_dir
        self._prefix = netns.command_prefix(namespace)
        peers = {f"m{n}": _peer_url(url) for n, url in enumerate(client_urls, start=1)}
        self.members: tuple[EmbeddedEtcd, ...] = tuple(
            EmbeddedEtcd(
                data_dir if len(client_urls) == 1 else data_dir / name,
                client_url=url,
                peer_url=peers[name],
                command_prefix=tuple(self._prefix),
                name=name,
                initial_cluster=peers,
            )
            for name, url in zip(peers, client_urls, strict=True)
        )
        self.gateway = EtcdGateway(namespace, client_urls)

    def start(self) -> None:
        """Start the members that do not run, and wait until all serve clients.

        Raises EtcdStartError with the end of a member's log.
        """
        started = [member for member in self.members if member.pid is None]
        for member in started:
            member.launch()
        for member in started:
            member.wait_until_ready()

    def stop(self) -> None:
        """End all members in good order; the data stays."""
        for member in self.members:
            member.stop()

    def kill(self) -> None:
        """End all members as a power cut would."""
        for member in self.members:
            member.kill()

    def leader(self) -> EmbeddedEtcd:
        """Return the member that leads. Raises LabError while there is none."""
        for member in self.members:
            status = self.gateway.status(member.endpoint)
            if status is not None and status.is_leader:
                return member
        msg = "etcd has no leader now"
        raise LabError(msg)

    def lead(self, member: EmbeddedEtcd) -> None:
        """Make ``member`` the leader; nothing happens when it is. Raises LabError."""
        status, leader = self.gateway.status(member.endpoint), self.leader()
        if status is None:
            msg = f"etcd member {member.name} does not answer"
            raise LabError(msg)
        if leader is not member:
            self.gateway.move_leader(leader.endpoint, status.member_id)

    def snapshot(self, file: Path) -> None:
        """Save a backup: ``etcdctl snapshot save``. Raises LabError."""
        tool = find_etcd_tool("etcdctl")
        endpoint = f"--endpoints={self.leader().endpoint}"
        self._run([tool, endpoint, "snapshot", "save", str(file)])

    def restore(self, file: Path) -> None:
        """Put every member's data back from a backup: ``etcdutl snapshot restore``.

        All members must be stopped; they keep their identity, so that clients
        see the same cluster at an older revision. Raises LabError.
        """
        tool = find_etcd_tool("etcdutl")
        cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.members:
            shutil.rmtree(member.member_dir, ignore_errors=True)
            self._run(
                [
                    *(tool, "snapshot", "restore", str(file), "--name", member.name),
                    *("--data-dir", str(member.member_dir), "--initial-cluster", cluster),
                    *("--initial-advertise-peer-urls", member.peer_url),
                ]
            )

    def _run(self, command: Sequence[str]) -> None:
        try:
            done = subprocess.run(
                [*self._prefix, *command],
                capture_output=True,
                text=True,
                check=False,
                timeout=_TOOL_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as exc:
            msg = f"{Path(command[0]).name} took more than {_TOOL_TIMEOUT_S:.0f} s"
            raise LabError(msg) from exc
        if done.returncode != 0:
            msg = f"{Path(command[0]).name}: {done.stderr.strip()[-300:]}"
            raise LabError(msg)


def _peer_url(client_url: str) -> str:
    return f"http://127.0.0.1:{(urlsplit(client_url).port or 0) + 1}"
