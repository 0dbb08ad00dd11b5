"""A narrow link between two nodes, whose routers swallow ICMP: found, named, clamped to."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.hub import Hub, HubNode
from tests.kernel.netns import Netns, eventually, veth

NARROW = 1400  # bytes


def put_behind_a_narrow_link(hub: Hub, node: HubNode) -> None:
    """Move ``node`` to 198.51.100.2 behind two routers that send no ICMP."""
    near, far = hub.netns(), hub.netns()
    veth(near, "up0", hub.netns_of_hub, "router")
    hub.netns_of_hub.ip("link", "set", "router", "master", "br0")
    near.ip("addr", "add", "192.0.2.253/24", "dev", "up0")
    veth(near, "mid", far, "mid")
    for router, number in ((near, 1), (far, 2)):
        router.ip("addr", "add", f"203.0.113.{number}/24", "dev", "mid")
        router.ip("link", "set", "mid", "mtu", str(NARROW))
        router.sysctl("net/ipv4/ip_forward", 1)
        chain = "chain c { type filter hook output priority 0; ip protocol icmp drop; };"
        router.nft("-f", "-", stdin=f"table inet mute {{ {chain} }}")
    hub.netns_of_hub.ip("link", "set", f"n{node.number}", "netns", far.name)
    far.ip("addr", "add", "198.51.100.1/24", "dev", f"n{node.number}")
    far.ip("link", "set", f"n{node.number}", "up")
    node.netns.ip("addr", "flush", "dev", "eth0")
    node.netns.ip("addr", "add", "198.51.100.2/24", "dev", "eth0")
    node.netns.ip("route", "add", "default", "via", "198.51.100.1")
    near.ip("route", "add", "198.51.100.0/24", "via", "203.0.113.2")
    far.ip("route", "add", "192.0.2.0/24", "via", "203.0.113.1")
    for each in (hub.netns_of_hub, *(n.netns for n in hub.nodes if n is not node)):
        each.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.253")


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = Hub(tmp_path_factory.mktemp("narrow"))
    try:
        made.begin()
        for number in (1, 2, 3):
            made.node(number)
        put_behind_a_narrow_link(made, made.nodes[2])
        yield made
    finally:
        made.close()


def device_mtu(netns: Netns) -> int:
    mtu: int = netns.ip_json("link", "show", "overlay.1")[0]["mtu"]
    return mtu


def answer(node: HubNode, *words: str) -> dict[str, dict[str, Any]]:
    document = json.loads(node.overlayctl("-o", "json", "mtu", *words))
    return {peer["node"]: peer for peer in document["peers"]}


def test_narrow_path_is_found_and_clamped_to(hub: Hub) -> None:
    first, second, third = hub.nodes
    agents = [node.start() for node in (first, third)]
    agents.append(second.start("--pmtu-clamp", "--pmtu-interval=1s", "--probe-interval=1s"))
    for agent in agents:
        agent.wait_ready()
    eventually(lambda: len(answer(first)) == 2, timeout_s=20, what="two peers")
    found = eventually(
        lambda: (a := answer(first, "--now")) and all(p["out"] for p in a.values()) and a,
        timeout_s=20,
        what="both path MTUs",
    )
    assert found
    assert (found["n3"]["out"], found["n3"]["back"], found["n3"]["fits"]) == (NARROW, NARROW, False)
    assert (found["n2"]["out"], found["n2"]["back"], found["n2"]["fits"]) == (1500, 1500, True)
    text = first.overlayctl("mtu")
    assert "too small: set Backend.MTU 1350, or start overlayd with --pmtu-clamp" in text
    assert "overlay_mesh_path_mtu_too_small_peers 1.0" in agents[0].get("/metrics")[1]
    assert device_mtu(first.netns) == 1450
    # The one with the clamp follows, down and up again; the lease is not touched.
    eventually(lambda: device_mtu(second.netns) == NARROW - 50, timeout_s=20, what="the clamp")
    eventually(
        lambda: f"FLANNEL_MTU={NARROW - 50}" in second.path("subnet.env").read_text(),
        what="subnet.env",
    )
    agents[1].terminate()
    hub.store("s.release(next(v for v in s.view().leases.values() if v.node == 'n3'))")
    eventually(lambda: device_mtu(second.netns) == 1450, timeout_s=20, what="the clamp lifted")


def test_pods_reach_each_other_over_a_narrow_path_once_clamped(hub: Hub) -> None:
    first, _, third = hub.nodes
    for node in (first, third):
        node.start("--pmtu-clamp", "--pmtu-interval=1s", "--probe-interval=1s").wait_ready()
    for node in (first, third):
        eventually(lambda n=node: device_mtu(n.netns) == NARROW - 50, timeout_s=20, what="clamp")  # type: ignore[misc]  # a bound default
    pod, _ = first.add_pod("a")
    _, address = third.add_pod("b")
    full = str(NARROW - 50 - 28)  # ICMP and IPv4 headers
    assert "1 received" in pod.run("ping", "-c1", "-W5", "-Mdo", "-s", full, address, check=False)
