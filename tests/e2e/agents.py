"""One node, one neighbor on its underlay and an etcd, for tests of the real ``overlayd``."""

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from overlay.lab.etcd import EmbeddedEtcd
from tests.kernel.netns import MakeNetns, Netns, eventually, veth

PREFIX: Final = "/coreos.com/network"
BIN: Final = Path(sys.executable).parent


class World:
    """``node`` (192.0.2.1, 2001:db8::1) and ``far`` (.2), and etcd on the node's loopback."""

    def __init__(self, make: MakeNetns, place: Path) -> None:
        self.node, self.far, self.place = make(), make(), place
        veth(self.node, "eth0", self.far, "eth0")
        for number, netns in ((1, self.node), (2, self.far)):
            netns.ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
            netns.ip("addr", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
        self.etcd = EmbeddedEtcd(place / "etcd")
        self.agents: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.kill()
            agent.wait(10)
        self.etcd.stop()

    def start_etcd(self) -> None:
        self.node.call(self.etcd.start)

    def put(self, key: str, value: str | bytes) -> None:
        """Put a key without a lease, through etcd's JSON gateway."""
        data = value.encode() if isinstance(value, str) else value
        self._etcd("put", {"key": _b64(f"{PREFIX}/{key}".encode()), "value": _b64(data)})

    def delete(self, key: str) -> None:
        self._etcd("deleterange", {"key": _b64(f"{PREFIX}/{key}".encode())})

    def delete_prefix(self, prefix: str) -> None:
        """Delete every key that begins with ``prefix``, which ends with a slash, at once."""
        start = f"{PREFIX}/{prefix}".encode()
        self._etcd("deleterange", {"key": _b64(start), "range_end": _b64(start[:-1] + b"0")})

    def leases(self) -> dict[str, dict[str, Any]]:
        """Return what stands under ``subnets/``: the parsed value, and etcd's lease as ``_ttl``."""
        start = f"{PREFIX}/subnets/".encode()
        answer = self._etcd("range", {"key": _b64(start), "range_end": _b64(start[:-1] + b"0")})
        found = {}
        for item in answer.get("kvs", []):
            key = base64.b64decode(item["key"]).decode().removeprefix(start.decode())
            value = json.loads(base64.b64decode(item["value"]))
            found[key] = {**value, "_ttl": int(item.get("lease", 0))}
        return found

    def _etcd(self, verb: str, body: dict[str, str]) -> dict[str, Any]:
        port = int(self.etcd.endpoint.rsplit(":", 1)[1])

        def ask() -> dict[str, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("POST", f"/v3/kv/{verb}", json.dumps(body))
            document: dict[str, Any] = json.loads(connection.getresponse().read())
            return document

        return self.node.call(ask)

    def agent(self, *flags: str, name: str = "here", under: tuple[str, ...] = ()) -> "RunningAgent":
        """Start ``overlayd`` in the node, by the command ``under`` where there is one."""
        log = self.place / f"overlayd-{len(self.agents)}.log"
        command = [
            *under,
            str(BIN / "overlayd"),
            f"--etcd-endpoints={self.etcd.endpoint}",
            f"--node-name={name}",
            f"--state-dir={self.place / 'state'}",
            f"--subnet-file={self.place / 'state' / 'subnet.env'}",
            "--iface=eth0",
            *flags,
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OVERLAYD_")}
        with log.open("wb") as file:
            process = self.node.call(
                lambda: subprocess.Popen(command, stderr=file, env=environment)
            )
        self.agents.append(process)
        return RunningAgent(process, self.node, log)

    def overlayctl(self, *words: str, check: bool = True) -> str:
        """Run ``overlayctl`` in the node and return its standard output."""
        socket = f"--socket={self.place / 'state' / 'cni.sock'}"
        endpoint = f"--etcd-endpoints={self.etcd.endpoint}"
        return self.node.run(str(BIN / "overlayctl"), endpoint, socket, *words, check=check)


class RunningAgent:
    """An ``overlayd`` that was started."""

    def __init__(self, process: "subprocess.Popen[bytes]", netns: Netns, log: Path) -> None:
        self.process = process
        self._netns = netns
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page; (0, "") while nobody serves it."""

        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", 9470, timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except OSError:
                return 0, ""

        return self._netns.call(ask)

    def wait_ready(self) -> None:
        eventually(
            lambda: self.process.poll() is None and self.get("/readyz")[0] == 200,
            timeout_s=20,
            what=f"/readyz of the agent, which logged {self.log}",
        )

    def wait_for_reason(self, text: str) -> dict[str, Any]:
        """Return ``/readyz`` once it is 503 and gives ``text`` among its reasons."""

        def look() -> dict[str, Any] | None:
            code, body = self.get("/readyz")
            return json.loads(body) if code == 503 and text in body else None

        found = eventually(look, timeout_s=20, what=f"reason {text!r}, log {self.log}")
        assert found is not None
        return found

    def cpu_s(self) -> float:
        """Return the processor time used so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_exit(self) -> tuple[int, str]:
        """Return exit status and what stands last in the log."""
        status = self.process.wait(20)
        return status, self.log.rstrip().rpartition("\n")[2]

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(5)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
