"""A node's address changes while it runs: device and lease follow, pods' connections go on."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hub import Hub, HubNode
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with host_unchanged():
        made = Hub(tmp_path)
        try:
            made.begin()
            yield made
        finally:
            made.close()


class Connection:
    """An established TCP connection between two pods."""

    def __init__(self, server: Netns, address: str, client: Netns) -> None:
        listener = server.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((address, 5000))
        listener.listen()
        self.near = client.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.near.settimeout(30)
        self.near.connect((address, 5000))
        self.far, _ = listener.accept()
        self.far.settimeout(30)
        listener.close()

    def echo(self, text: bytes) -> bytes:
        """Return what comes back of ``text``, there and back over the connection."""
        self.near.sendall(text)
        self.far.sendall(self.far.recv(64))
        return self.near.recv(64)

    def close(self) -> None:
        self.near.close()
        self.far.close()


def move(node: HubNode, old: str, new: str) -> None:
    node.netns.ip("addr", "add", f"{new}/24", "dev", "eth0")
    node.netns.ip("addr", "del", f"{old}/24", "dev", "eth0")


def device(node: HubNode) -> tuple[str, str, int]:
    """Return local address, MAC address and interface index of the VXLAN device."""
    (link,) = node.netns.ip_json("link", "show", "overlay.1")
    return link["linkinfo"]["info_data"]["local"], link["address"], link["ifindex"]


def test_established_connections_survive_a_new_address(hub: Hub) -> None:
    first, second = hub.node(1), hub.node(2)
    agents = [node.start() for node in (first, second)]
    for agent in agents:
        agent.wait_ready()
    (here, _), (there, address) = first.add_pod("one"), second.add_pod("two")
    connection = Connection(there, address, here)
    assert connection.echo(b"before") == b"before"
    _, mac, index = device(first)
    subnet = next(key for key, (holder, _) in hub.holders().items() if holder == "n1")
    move(first, "192.0.2.1", "192.0.2.101")
    eventually(
        lambda: hub.holders()[subnet] == ["n1", "192.0.2.101"], timeout_s=20, what=agents[0].log
    )
    assert device(first) == ("192.0.2.101", mac, index), "changed in place"
    assert connection.echo(b"after") == b"after"
    connection.close()
    assert [agent.process.poll() for agent in agents] == [None, None]
    eventually(lambda: "192.0.2.101" in second.netns.run("bridge", "fdb", "show"))
    assert "192.0.2.1 " not in second.netns.run("bridge", "fdb", "show", "dev", "overlay.1")
    agents[0].wait_ready()


def test_device_follows_while_the_store_is_away_and_the_lease_when_it_is_back(hub: Hub) -> None:
    node = hub.node(1)
    agent = node.start()
    agent.wait_ready()
    _, mac, index = device(node)
    hub.etcd.kill()
    eventually(lambda: "forwarding goes on" in agent.log, timeout_s=20)
    move(node, "192.0.2.1", "192.0.2.101")
    eventually(lambda: device(node) == ("192.0.2.101", mac, index), timeout_s=20, what=agent.log)
    hub.start_etcd()
    eventually(
        lambda: [*hub.holders().values()] == [["n1", "192.0.2.101"]],
        timeout_s=20,
        what=agent.log,
    )
    agent.wait_ready()
