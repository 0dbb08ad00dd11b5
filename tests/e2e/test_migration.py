"""A flannel cluster moves over node by node: pods that run keep their connections and addresses.

flannel's part is played by the commands that its agent executes (its
``pkg/backend/vxlan``), its pods are attached by the reference plugins ``bridge``
and ``host-local`` as its CNI plugin has them do. flanneld itself is in no
package that can be had here.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.chains import REFERENCE_PLUGINS, Attachment, Chain
from tests.e2e.kube_hub import KubeHub
from tests.e2e.pair import needs_reference_plugins
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = [pytest.mark.e2e, needs_reference_plugins]

NUMBERS: Final = (1, 2, 3)
PORT: Final = 7000
LATE_S: Final = 30.0
# While a node changes devices its peers send to the old one: some packets are sent again.
SILENT_S: Final = 10.0


class FlannelPod:
    """A pod that flannel's chain attached; it answers every line on TCP."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        self.netns = cluster.hub.netns()
        chain = cluster.chains[number]
        self.attachment = Attachment(f"old-{number}", str(self.netns.path))
        result = chain.add(self.attachment)
        self.address: str = result["ips"][0]["address"].split("/")[0]
        self._listening = self.netns.call(lambda: socket.create_server((self.address, PORT)))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=_echo, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._listening.close()


def _echo(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection:
        while data := connection.recv(64):
            connection.sendall(data)


class Conversation:
    """One TCP connection that lives through the whole move."""

    def __init__(self, source: Netns, address: str) -> None:
        self._socket = source.call(lambda: socket.create_connection((address, PORT), 10))
        self._socket.settimeout(SILENT_S)
        self.asked = 0

    def goes_on(self) -> None:
        """Ask and be answered on the same connection."""
        self.asked += 1
        line = f"{self.asked}\n".encode()
        self._socket.sendall(line)
        found = b""
        while not found.endswith(b"\n"):
            data = self._socket.recv(64)
            assert data, "the connection ended"
            found += data
        assert found == line

    def close(self) -> None:
        self._socket.close()


class Cluster:
    """Three nodes of flannel's, with a pod each."""

    def __init__(self, place: Path) -> None:
        self.hub = KubeHub(place)
        self.held = {n: place / f"host-local-{n}" for n in NUMBERS}
        self.chains: dict[int, Chain] = {}
        for number in NUMBERS:
            self.hub.add_flannel(number)
            self.hub.host(number).netns.sysctl("net/ipv4/ip_forward", 1)
            self.chains[number] = self._flannels_chain(number)
        self.is_flannels = set(NUMBERS)
        self.learn()

    def _flannels_chain(self, number: int) -> Chain:
        """Return what flannel's CNI plugin delegates to."""
        ipam = {
            "type": "host-local",
            "subnet": f"10.244.{number}.0/24",
            "routes": [{"dst": "10.244.0.0/16"}],
            "dataDir": str(self.held[number]),
        }
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "mtu": 1450,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipMasq": False,
            "ipam": ipam,
        }
        conflist = {"cniVersion": "1.0.0", "name": "cbr0", "plugins": [bridge]}
        return Chain(conflist, self.hub.host(number).netns.name, (REFERENCE_PLUGINS,))

    def learn(self) -> None:
        """Have flannel's nodes do what they do when an annotation changes."""
        for number in self.is_flannels:
            for peer in NUMBERS:
                if peer != number:
                    self.hub.teach_flannel(self.hub.host(number), peer)

    def move(self, number: int) -> None:
        """Stop flannel on a node, and start our agent in its place."""
        self.is_flannels.remove(number)
        agent = self.hub.start(number, "--replace-flannel", f"--host-local-dir={self.held[number]}")
        agent.wait_ready()
        self.learn()

    def files(self, number: int) -> set[str]:
        """Return the addresses that host-local holds on a node."""
        folder = self.held[number] / "cbr0"
        return {each.name for each in folder.iterdir() if each.name[0].isdigit()}

    def close(self) -> None:
        self.hub.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with host_unchanged():
        made = Cluster(tmp_path)
        try:
            yield made
        finally:
            made.close()


def ours(cluster: Cluster, number: int, container: str) -> dict[str, Any]:
    status, result = cluster.hub.host(number).cni("ADD", container, cluster.hub.netns())
    assert status == 0, result
    found: dict[str, Any] = result
    return found


def test_node_by_node_with_pods_alive(cluster: Cluster) -> None:
    pods = {number: FlannelPod(cluster, number) for number in NUMBERS}
    pairs = [(1, 2), (2, 3), (3, 1)]
    talks = [Conversation(pods[a].netns, pods[b].address) for a, b in pairs]
    for number in NUMBERS:
        cluster.move(number)
        for talk in talks:
            talk.goes_on()
        host = cluster.hub.host(number).netns
        assert "flannel.1" not in host.ip("link")
        # New pods beside the old ones: nobody gets an address that is taken.
        new = {ours(cluster, number, f"new-{n}")["ips"][0]["address"] for n in range(3)}
        assert len(new) == 3
        assert pods[number].address not in {each.split("/")[0] for each in new}
    for talk in talks:
        talk.goes_on()
    cluster.hub.wait_for_routes(3)
    # An old pod ends: the runtime knows our configuration alone by now.
    here = cluster.hub.host(1)
    assert cluster.files(1) == {pods[1].address}
    status, result = here.cni("DEL", "old-1")
    assert status == 0, result
    assert cluster.files(1) == set()
    assert cluster.files(2) == {pods[2].address}
    for talk in talks:
        talk.close()
    for pod in pods.values():
        pod.close()


def test_flannels_device_is_named_where_nobody_says_to_replace_it(cluster: Cluster) -> None:
    agent = cluster.hub.start(1)
    eventually(lambda: "device flannel.1 exists" in agent.log, timeout_s=LATE_S)
    assert "--replace-flannel" in agent.log
    assert "flannel.1" in cluster.hub.host(1).netns.ip("link")
