"""Real agents that measure one another: the matrix, the key, and who is not answered."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from overlay.mesh.seal import node_tag
from overlay.mesh.wire import Kind, Message, Path, pack
from tests.e2e.agents import BIN, RunningAgent
from tests.e2e.hub import Hub, HubNode
from tests.kernel.netns import eventually

PORT = 9471


class Mesh:
    """Three nodes that probe each other every second."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.nodes = [hub.node(number) for number in (1, 2, 3)]
        self.agents = [node.start("--probe-interval=1s") for node in self.nodes]

    def key(self) -> bytes:
        """Return the newest key, as whoever may read the store can."""
        return bytes.fromhex(self.hub.store("s.view().fabric_keys.newest.hex()"))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    hub = Hub(tmp_path_factory.mktemp("mesh"))
    try:
        hub.begin()
        made = Mesh(hub)
        for agent in made.agents:
            agent.wait_ready()
        yield made
    finally:
        hub.close()


def measured(node: HubNode) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(node.overlayctl("-o", "json", "mesh"))
    return document


def ways(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {
        (link["from"], link["to"])
        for link in document["links"]
        if link["overlay_ms"] is not None and link["underlay_ms"] is not None
    }


def metric(agent: RunningAgent, name: str) -> float:
    """Return a metric; 0 while it is not there."""
    for line in agent.get("/metrics")[1].splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_each_node_knows_the_whole_matrix(mesh: Mesh) -> None:
    every = {(f"n{a}", f"n{b}") for a in (1, 2, 3) for b in (1, 2, 3) if a != b}
    for node in mesh.nodes:
        eventually(lambda n=node: ways(measured(n)) == every, timeout_s=20, what="the matrix")  # type: ignore[misc]  # a bound default
    table = mesh.nodes[0].overlayctl("mesh")
    assert table.splitlines()[0].split() == ["OVERLAY", "MS", "n1", "n2", "n3"]
    lines = mesh.nodes[0].overlayctl("mesh", "--links", "--underlay").splitlines()
    assert len(lines) == 7


def test_overlay_that_is_blocked_shows_beside_an_underlay_that_is_not(mesh: Mesh) -> None:
    third = mesh.nodes[2]
    rule = "chain c { type filter hook input priority -300; udp dport 8472 drop; };"
    third.netns.nft("-f", "-", stdin=f"table inet block {{ {rule} }}")

    def peers() -> dict[str, Any]:
        return {peer["node"]: peer for peer in measured(mesh.nodes[0])["peers"]}

    try:
        eventually(lambda: peers()["n3"]["overlay"]["silent"], timeout_s=20, what="n3 silent")
        found = peers()
        assert not found["n3"]["underlay"]["silent"]
        assert not found["n2"]["overlay"]["silent"]
        lost = 'overlay_mesh_peer_loss_ratio{path="overlay",peer="n3"}'
        assert metric(mesh.agents[0], lost) > 0
        doctor = mesh.nodes[0].overlayctl("doctor", "--local", "--only=mesh")
        assert "n3: probes through the tunnel get no answer, those beside it do" in doctor
        assert f"overlayctl explain node {found['n3']['subnet'].split('/')[0]}" in doctor
    finally:
        third.netns.nft("delete", "table", "inet", "block")
    eventually(lambda: not peers()["n3"]["overlay"]["silent"], timeout_s=20, what="n3 again")


def test_key_is_changed_without_a_lost_probe_that_lasts(mesh: Mesh) -> None:
    before = mesh.key()
    endpoint = f"--etcd-endpoints={mesh.hub.etcd.endpoint}"
    shown = mesh.nodes[0].overlayctl(endpoint, "network", "rotate-key")
    after = mesh.key()
    assert before != after
    answered = [
        sum(peer[way]["sent"] - peer[way]["lost"] for way in ("overlay", "underlay"))
        for peer in measured(mesh.nodes[0])["peers"]
    ]

    def answers() -> list[int]:
        return [
            sum(peer[way]["sent"] - peer[way]["lost"] for way in ("overlay", "underlay"))
            for peer in measured(mesh.nodes[0])["peers"]
        ]

    def has_gone_on() -> bool:
        return all(now > then + 3 for now, then in zip(answers(), answered, strict=True))

    eventually(has_gone_on, timeout_s=20, what="probes under the new key")
    everything = [shown, *(agent.log for agent in mesh.agents)]
    for node, agent in zip(mesh.nodes, mesh.agents, strict=True):
        everything += [node.overlayctl("-o", "json", word) for word in ("status", "peers", "mesh")]
        everything += [agent.get(path)[1] for path in ("/", "/metrics", "/readyz")]
        command = open(f"/proc/{agent.process.pid}/cmdline", "rb").read()  # noqa: SIM115, PTH123
        everything.append(command.decode())
    for text in everything:
        assert before.hex() not in text
        assert after.hex() not in text


def test_only_a_fresh_question_under_the_key_is_answered(mesh: Mesh) -> None:
    asker = mesh.hub.netns_of_hub.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asker.settimeout(10)
    to, own = ("192.0.2.1", PORT), node_tag("nobody")

    def question(number: int, key: bytes) -> bytes:
        nonce = number.to_bytes(16, "big")
        return pack(Message(Kind.PROBE, Path.UNDERLAY, own, node_tag("n1"), nonce), key)

    def refused(reason: str) -> float:
        return metric(mesh.agents[0], f'overlay_mesh_refused_total{{reason="{reason}"}}')

    with asker:
        good = question(1, mesh.key())
        asker.sendto(good, to)
        assert asker.recvfrom(4096)[1] == to
        before = {reason: refused(reason) for reason in ("replayed", "unsealed", "foreign")}
        asker.sendto(good, to)
        asker.sendto(question(2, bytes(32)), to)
        asker.sendto(b"who are you?", to)
        # What is answered next shows that those before it were not.
        asker.sendto(question(3, mesh.key()), to)
        data, _ = asker.recvfrom(4096)
        assert (3).to_bytes(16, "big") in data
        assert {reason: refused(reason) - count for reason, count in before.items()} == {
            "replayed": 1, "unsealed": 1, "foreign": 1,
        }  # fmt: skip


def test_page_is_for_the_node_itself_and_others_ask_under_the_key(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    hub = Hub(tmp_path_factory.mktemp("open"))
    try:
        hub.begin()
        agent = hub.node(1).start("--healthz-ip=0.0.0.0")
        agent.wait_ready()
        hub.node(2).start().wait_ready()
        status, text = agent.get("/")
        assert (status, text[:15]) == (200, "<!DOCTYPE html>")
        curl = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}")
        there = "http://192.0.2.1:9470/"
        assert hub.netns_of_hub.run(*curl, there) == "403"
        assert hub.netns_of_hub.run(*curl, "-H", "Host: localhost:9470", there) == "403"
        assert hub.netns_of_hub.run(*curl, "http://192.0.2.1:9470/healthz") == "200"
        told = json.loads(hub.netns_of_hub.run("curl", "-s", f"{there}readyz"))
        assert set(told) == {"ready", "phase", "store_connected"}
        assert "warnings" in json.loads(agent.get("/readyz")[1])
        loss = 'overlay_mesh_peer_loss_ratio{path="underlay",peer="n2"}'
        eventually(lambda: loss in agent.get("/metrics")[1], timeout_s=30, what=loss)
        metrics = hub.netns_of_hub.run("curl", "-s", f"{there}metrics")
        assert "overlay_peers 1.0" in metrics
        assert "n2" not in metrics
        endpoint = f"--etcd-endpoints={hub.etcd.endpoint}"
        ask = (str(BIN / "overlayctl"), endpoint, "-o", "json", "mesh", "--at", "n1")
        eventually(lambda: hub.store("s.view().fabric_keys.newest is not None"), what="the key")
        eventually(lambda: hub.netns_of_hub.run(*ask, check=False), timeout_s=20, what="an answer")
        assert json.loads(hub.netns_of_hub.run(*ask))["node"] == "n1"
        post = ("-X", "POST", "-d", "{}", "http://192.0.2.1:9470/ask/mesh")
        assert hub.netns_of_hub.run(*curl, *post) == "400"
        named = ("-H", "Host: evil.example:9470", "http://127.0.0.1:9470/")
        assert hub.nodes[0].netns.run(*curl, *named) == "403"
    finally:
        hub.close()


@pytest.mark.parametrize(
    ("config", "has_overlay"),
    [
        pytest.param(
            '{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:1::/48",'
            ' "Egress": {"Mode": "isolated"}, "Backend": {"Type": "vxlan"}}',
            True,
            id="IPv6, isolated",
        ),
        pytest.param(
            '{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}', False, id="no tunnel"
        ),
    ],
)
def test_other_networks_are_measured_too(
    config: str, has_overlay: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hub = Hub(tmp_path_factory.mktemp("other"))
    try:
        hub.begin(config)
        for node in (hub.node(1), hub.node(2)):
            address = f"2001:db8::{node.number}/64"
            node.netns.ip("addr", "add", address, "dev", "eth0", "nodad")
            node.start("--probe-interval=1s").wait_ready()

        def peer() -> dict[str, Any] | None:
            peers = measured(hub.nodes[0])["peers"]
            found: dict[str, Any] | None = peers[0] if peers else None
            ways = ("overlay", "underlay") if has_overlay else ("underlay",)
            return found if found and all(found[w] and found[w]["rtt_ms"] for w in ways) else None

        found = eventually(peer, timeout_s=20, what="a round trip")
        assert found is not None
        assert (found["overlay"] is not None) is has_overlay
        assert len(hub.nodes[0].overlayctl("mesh", "--links").splitlines()) >= 2
        document = json.loads(hub.nodes[0].overlayctl("-o", "json", "mtu", "--now"))
        assert [(p["out"], p["back"], p["fits"]) for p in document["peers"]] == [(1500, 1500, True)]
    finally:
        hub.close()


def test_taken_probe_port_costs_the_measuring_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    hub = Hub(tmp_path_factory.mktemp("taken"))
    try:
        hub.begin()
        node = hub.node(1)
        with node.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("0.0.0.0", PORT))
            agent = node.start()
            agent.wait_ready()
            eventually(lambda: "--probe-port 9471" in node.overlayctl("mesh"), what="the reason")
            assert "<h2>Mesh</h2>" in agent.get("/")[1]
    finally:
        hub.close()
