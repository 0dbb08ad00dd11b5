"""Several nodes of a Kubernetes cluster on one underlay, and an API server beside them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.e2e.agents import BIN, RunningAgent
from tests.e2e.hub import CONFIG, Hub, HubNode
from tests.kernel.netns import eventually
from tests.kube.api_server import TOKEN, ApiServer
from tests.kube.certificates import make_authority
from tests.kube.cluster import NODES, STEM, flannels, node
from tests.kube.objects import Object, Place, RefusedError

SERVER: Final = "192.0.2.254"
PORT: Final = 6443
FLANNEL_MAC: Final = "c6:1d:62:0e:11:{:02x}"


class KubeHub(Hub):
    """A hub whose nodes get their podCIDR, ``10.244.NUMBER.0/24``, from an API server."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        authority = make_authority(place / "authority", SERVER)
        self.api = self.netns_of_hub.call(lambda: ApiServer(authority, (SERVER, PORT)))
        self.config = place / "net-conf.json"
        self.config.write_text(CONFIG)
        self.account = self.api.account(place / "account", TOKEN)

    def register(self, number: int, **annotations: str) -> None:
        """Make a Node that has its podCIDR."""
        self.api.objects.create(NODES, node(f"n{number}", f"10.244.{number}.0/24", **annotations))

    def register_bare(self, number: int) -> None:
        """Make the Node that a kubelet registers."""
        self.api.objects.create(NODES, node(f"n{number}"))

    def complete(self, number: int) -> None:
        """Give a node its podCIDR, as the controller manager does."""
        found = self.api.objects.get(NODES, f"n{number}")
        spec = {"podCIDR": f"10.244.{number}.0/24", "podCIDRs": [f"10.244.{number}.0/24"]}
        self.api.objects.replace(NODES, f"n{number}", {**found, "spec": spec}, None)

    def put(self, place: Place, found: Object) -> None:
        """Write an object as somebody with ``kubectl`` would, whether or not it is there."""
        name = found["metadata"]["name"]
        try:
            known = self.api.objects.get(place, name)
        except RefusedError:
            self.api.objects.create(place, found)
            return
        meta = {**known["metadata"], **found["metadata"]}
        self.api.objects.replace(place, name, {**found, "metadata": meta}, None)

    def unregister(self, number: int) -> None:
        self.api.objects.delete(NODES, f"n{number}")

    def found(self, number: int) -> Object:
        return self.api.objects.get(NODES, f"n{number}")

    def annotation(self, number: int, name: str) -> str:
        found: str = self.found(number)["metadata"].get("annotations", {}).get(STEM + name, "")
        return found

    def replace(self, number: int, found: Object) -> None:
        """Write a Node as somebody else would."""
        self.api.objects.replace(NODES, f"n{number}", found, None)

    def wait_for_routes(self, count: int, on: Sequence[int] | None = None) -> None:
        """Wait until nodes 1 to ``count`` are routed to by each other, or by those in ``on``."""
        for number in on if on is not None else range(1, count + 1):
            wanted = [f"10.244.{n}.0/24" for n in range(1, count + 1) if n != number]
            netns = self.host(number).netns
            eventually(
                lambda netns=netns, wanted=wanted: all(w in netns.ip("route") for w in wanted),  # type: ignore[misc]  # defaults
                timeout_s=30.0,
                what=f"routes of n{number} to {wanted}",
            )

    def stop_api(self) -> None:
        self.api.stop()

    def start_api(self) -> None:
        self.netns_of_hub.call(self.api.start)

    def flags(self, number: int) -> list[str]:
        """Return how an agent is told of this cluster, as its DaemonSet would."""
        return [
            "--kube-subnet-mgr",
            f"--kube-api-url={self.api.url}",
            f"--kube-account-dir={self.account}",
            f"--net-config-path={self.config}",
            f"--node-name=n{number}",
        ]

    def start(self, number: int, *flags: str) -> RunningAgent:
        """Plug in a node if it is not there, and start its agent."""
        return self.host(number).start(*self.flags(number), *flags)

    def host(self, number: int) -> HubNode:
        known = [each for each in self.nodes if each.number == number]
        return known[0] if known else self.node(number)

    def overlayctl(self, number: int, *words: str, check: bool = True) -> str:
        """Run ``overlayctl`` on a node, told of this cluster."""
        here = self.host(number)
        flags = [flag for flag in self.flags(number) if not flag.startswith("--node-name")]
        socket = f"--socket={here.socket}"
        return here.netns.run(str(BIN / "overlayctl"), socket, *flags, *words, check=check)

    def add_flannel(self, number: int) -> HubNode:
        """Make a node as flannel would: its annotations, its device, no agent of ours."""
        mac = FLANNEL_MAC.format(number)
        self.register(number, **flannels(f"192.0.2.{number}", mac))
        here = self.host(number)
        vxlan = f"type vxlan id 1 local 192.0.2.{number} dev eth0 dstport 8472 nolearning"
        here.netns.ip(*f"link add flannel.1 address {mac} {vxlan}".split())
        here.netns.ip("addr", "add", f"10.244.{number}.0/32", "dev", "flannel.1")
        here.netns.ip("link", "set", "flannel.1", "up")
        return here

    def teach_flannel(self, here: HubNode, peer: int) -> None:
        """Give a node of flannel what flannel makes of the annotations of ``peer``."""
        mac = json.loads(self.annotation(peer, "backend-data"))["VtepMAC"]
        subnet = f"10.244.{peer}.0"
        here.netns.ip(*f"neigh replace {subnet} lladdr {mac} dev flannel.1 nud permanent".split())
        here.netns.ip(*f"route replace {subnet}/24 via {subnet} dev flannel.1 onlink".split())
        public = self.annotation(peer, "public-ip")
        fdb = f"fdb replace {mac} dev flannel.1 dst {public} self permanent"
        here.netns.run("bridge", *fdb.split())

    def close(self) -> None:
        super().close()
        self.api.close()
