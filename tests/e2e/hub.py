"""Several nodes on one underlay, each the real ``overlayd`` with pods, and an etcd."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import overlay_cni.plugin
from overlay.lab.etcd import EmbeddedEtcd, free_port
from tests.e2e.agents import BIN, RunningAgent
from tests.kernel.netns import Netns

CONFIG: Final = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
PLUGIN: Final = (sys.executable, "-ISE", overlay_cni.plugin.__file__)


class HubNode:
    """One node, ``192.0.2.NUMBER``, with a state directory of its own."""

    def __init__(self, hub: "Hub", number: int) -> None:
        self.hub, self.number = hub, number
        self.netns = hub.netns()
        self.state = hub.place / f"n{number}"
        self.root = Path("/")  # where the agent's files are found from outside its mounts
        self.agents: list[subprocess.Popen[bytes]] = []
        port = f"n{number}"
        hub.netns_of_hub.ip(
            *f"link add {port} type veth peer name eth0 netns {self.netns.name}".split()
        )
        hub.netns_of_hub.ip("link", "set", port, "master", "br0", "up")
        self.netns.sysctl("net/ipv4/conf/eth0/promote_secondaries", 1)
        self.netns.ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
        self.netns.ip("link", "set", "eth0", "up")

    def start(self, *flags: str, name: str | None = "", prefix: Sequence[str] = ()) -> RunningAgent:
        """Start ``overlayd``: under ``name``, under ``nNUMBER``, or, for None, its machine id.

        ``prefix`` is what executes it, where it needs mounts of its own.
        """
        command = [
            *prefix,
            str(BIN / "overlayd"),
            f"--etcd-endpoints={self.hub.etcd.endpoint}",
            f"--state-dir={self.state}",
            f"--subnet-file={self.state / 'subnet.env'}",
            "--iface=eth0",
            *([] if name is None else [f"--node-name={name or f'n{self.number}'}"]),
            *flags,
        ]
        log = self.hub.place / f"overlayd-{self.number}-{len(self.agents)}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OVERLAYD_")}
        with log.open("wb") as file:
            process = self.netns.call(
                lambda: subprocess.Popen(command, stderr=file, env=environment)
            )
        self.agents.append(process)
        return RunningAgent(process, self.netns, log)

    def cni(self, command: str, container: str, pod: Netns | None = None) -> tuple[int, Any]:
        """Execute the plugin; return its exit status and what it printed, parsed."""
        config = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay"}
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(pod.path) if pod is not None else "",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME=pod-{container}",
            "PATH": os.environ["PATH"],
        }
        request = json.dumps({**config, "socket": self.socket}).encode()
        done = self.netns.call(
            lambda: subprocess.run(
                PLUGIN, input=request, env=environment, capture_output=True, check=False, timeout=60
            )
        )
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    def add_pod(self, container: str) -> tuple[Netns, str]:
        """Attach a pod; return its namespace and its address."""
        pod = self.hub.netns()
        status, result = self.cni("ADD", container, pod)
        assert status == 0, result
        return pod, result["ips"][0]["address"].split("/")[0]

    def cut_off(self) -> None:
        """Let nothing in or out of the node's underlay."""
        drop = "type filter hook {0} priority -300; {1} eth0 drop;"
        chains = " ".join(
            f"chain {hook} {{ {drop.format(hook, word)} }};"
            for hook, word in (("input", "iifname"), ("output", "oifname"))
        )
        self.netns.nft("-f", "-", stdin=f"table inet cut {{ {chains} }}")

    def heal(self) -> None:
        """Undo ``cut_off``."""
        self.netns.nft("delete", "table", "inet", "cut")

    @property
    def socket(self) -> str:
        return str(self.path("cni.sock"))

    def path(self, name: str) -> Path:
        """Return where a file of the state directory is found from outside."""
        return self.root / str(self.state).lstrip("/") / name

    def overlayctl(self, *words: str) -> str:
        """Run ``overlayctl`` on the node and return its standard output, whatever its status."""
        socket = f"--socket={self.socket}"
        return self.netns.run(str(BIN / "overlayctl"), socket, *words, check=False)

    def status(self) -> dict[str, Any]:
        """Return what ``overlayctl status`` says."""
        document: dict[str, Any] = json.loads(self.overlayctl("-o", "json", "status"))
        return document


class Hub:
    """A bridge, ``192.0.2.254``, with an etcd; nodes are plugged into it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._made: list[Netns] = []
        self.netns_of_hub = self.netns()
        self.netns_of_hub.ip("link", "add", "br0", "type", "bridge")
        self.netns_of_hub.ip("addr", "add", "192.0.2.254/24", "dev", "br0")
        self.netns_of_hub.ip("link", "set", "br0", "up")
        self.etcd = self.make_etcd(place / "etcd")
        self.nodes: list[HubNode] = []

    def make_etcd(self, data_dir: Path) -> EmbeddedEtcd:
        peer_url = f"http://127.0.0.1:{free_port()}"
        return EmbeddedEtcd(data_dir, client_url="http://192.0.2.254:2379", peer_url=peer_url)

    def netns(self) -> Netns:
        self._made.append(Netns())
        return self._made[-1]

    def node(self, number: int) -> HubNode:
        self.nodes.append(HubNode(self, number))
        return self.nodes[-1]

    def start_etcd(self) -> None:
        self.netns_of_hub.call(self.etcd.start)

    def begin(self, config: str = CONFIG) -> None:
        """Start etcd and write the network config."""
        self.start_etcd()
        self.store(f"s.write_config({config!r})")

    def store(self, expression: str) -> Any:
        """Return what ``expression`` makes of the store ``s``, in the hub's namespace.

        In a process of its own: gRPC's threads would stay in another namespace.
        """
        code = (
            "import json\n"
            "from overlay.store.etcd import EtcdLeaseStore\n"
            "from overlay.store.etcd_config import EtcdConfig\n"
            "from overlay.model.lease import *\n"
            "from overlay.model.lease import RESERVATION\n"
            "from overlay.model.subnet import parse_subnet\n"
            f"s = EtcdLeaseStore(EtcdConfig(({self.etcd.endpoint!r},)))\n"
            f"print(json.dumps({expression}, default=str))\n"
        )
        return json.loads(self.netns_of_hub.run(sys.executable, "-c", code))

    def holders(self) -> dict[str, list[str]]:
        """Return the leases: by key, the holder's name and its addresses."""
        found: dict[str, list[str]] = self.store(
            "{k: [v.node, *map(str, v.attributes.public.values())]"
            " for k, v in s.view().leases.items()}"
        )
        return found

    def give_to_another(self, key: str) -> None:
        """Make the lease under ``key`` a reservation for the node ``other``, in one write."""
        self.store(
            f"s._writer.put_text({'subnets/' + key!r}, format_attributes(LeaseAttributes("
            "RESERVATION, owner=Owner('other', 'other'))).decode(),"
            f" s.view().leases[{key!r}].mod_revision)"
        )

    def compact(self) -> None:
        """Compact etcd up to its newest revision."""
        self.store(
            "s._connection.read(lambda c: c.compact(s.view().revision, physical=True)) is None"
        )

    def close(self) -> None:
        for node in self.nodes:
            for agent in node.agents:
                if agent.poll() is None:
                    agent.kill()
                agent.wait(10)
        self.etcd.stop()
        for netns in self._made:
            netns.close()
