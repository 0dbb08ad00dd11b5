"""Fifty real agents start at once on one etcd that has exactly fifty subnets."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from overlay.lab.etcd import EmbeddedEtcd
from tests.e2e.agents import BIN
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

AGENTS: Final = 50
ROUNDS: Final = 20
CONFIG: Final = json.dumps(
    {
        "Network": "10.244.0.0/16",
        "SubnetMin": "10.244.1.0",
        "SubnetMax": f"10.244.{AGENTS}.0",
        "Backend": {"Type": "vxlan"},
    }
)


class Crowd:
    """A bridge with an etcd, and a namespace for each agent."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.hub = Netns()
        self.hub.ip("link", "add", "br0", "type", "bridge")
        self.hub.ip("addr", "add", "192.0.2.254/24", "dev", "br0")
        self.hub.ip("link", "set", "br0", "up")
        self.nodes = [self._node(i) for i in range(1, AGENTS + 1)]
        self.etcd = EmbeddedEtcd(place / "etcd", client_url="http://192.0.2.254:2379")

    def _node(self, i: int) -> Netns:
        node = Netns()
        far = f"n{i}"
        self.hub.ip(
            *f"link add {far} type veth peer name eth0 netns {node.name}".split(),
        )
        self.hub.ip("link", "set", far, "master", "br0", "up")
        node.ip("addr", "add", f"192.0.2.{i}/24", "dev", "eth0")
        node.ip("link", "set", "eth0", "up")
        return node

    def start(self, number: int) -> list["subprocess.Popen[bytes]"]:
        """Start all agents, with no memory of the round before."""
        return [self._agent(node, i, number) for i, node in enumerate(self.nodes, 1)]

    def _agent(self, node: Netns, i: int, number: int) -> "subprocess.Popen[bytes]":
        state = self.place / f"round{number}" / f"n{i}"
        # All the processors are theirs for minutes: what is tested beside them goes first.
        command = [
            *("nice", "-n", "19", "nsenter", f"--net={node.path}", str(BIN / "overlayd")),
            f"--etcd-endpoints={self.etcd.endpoint}",
            *("--iface=eth0", f"--node-name=n{i}"),
            *(f"--state-dir={state}", f"--subnet-file={state}/subnet.env", "--healthz-port=0"),
        ]
        with (self.place / f"n{i}.log").open("ab") as log:
            return subprocess.Popen(command, stderr=log)

    def etcdctl(self, call: str) -> str:
        """Run a call of the store in the hub, in a process of its own."""
        code = (
            "import sys; from overlay.store.etcd import EtcdLeaseStore; "
            "from overlay.store.etcd_config import EtcdConfig; "
            f"s = EtcdLeaseStore(EtcdConfig(endpoints=({self.etcd.endpoint!r},))); {call}"
        )
        return self.hub.run(str(BIN / "python"), "-c", code)

    def holders(self) -> dict[str, str]:
        """Return who holds which subnet, as the store has it."""
        found = self.etcdctl(
            "import json; print(json.dumps({k: v.node for k, v in s.view().leases.items()}))"
        )
        holders: dict[str, str] = json.loads(found)
        return holders

    def close(self) -> None:
        self.etcd.stop()
        for netns in (*self.nodes, self.hub):
            netns.close()


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    with host_unchanged():
        made = Crowd(tmp_path)
        made.hub.call(made.etcd.start)
        try:
            made.etcdctl(f"s.write_config({CONFIG!r})")
            yield made
        finally:
            made.close()


@pytest.mark.timeout(1800)
def test_fifty_agents_race_for_fifty_subnets(crowd: Crowd) -> None:
    for number in range(ROUNDS):
        agents = crowd.start(number)
        try:
            files = [crowd.place / f"round{number}" / f"n{i}" / "subnet.env" for i in range(1, 51)]
            eventually(lambda f=files: all(p.exists() for p in f), timeout_s=120)  # type: ignore[misc]
            assert [a.poll() for a in agents] == [None] * AGENTS, "none exits"
            holders = crowd.holders()
            assert len(holders) == AGENTS
            assert set(holders.values()) == {f"n{i}" for i in range(1, AGENTS + 1)}
            told = {p.read_text().split("FLANNEL_SUBNET=")[1].split("\n")[0] for p in files}
            assert len(told) == AGENTS, "no two believe in one subnet"
        finally:
            for agent in agents:
                agent.send_signal(signal.SIGTERM)
            statuses = [agent.wait(60) for agent in agents]
        assert statuses == [0] * AGENTS
        crowd.etcdctl("[s.release(x) for x in s.view().leases.values()]")
