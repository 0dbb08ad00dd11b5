"""What others do to the kernel is put right when it happens; the audit is an hour off here."""

import time
from collections.abc import Iterator

import pytest

from tests.e2e.agents import RunningAgent, World
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
PEER = (
    '{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"c6:1d:62:0e:11:22"}}'
)


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, RunningAgent]]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        world = World(make, tmp_path_factory.mktemp("drift"))
        world.start_etcd()
        world.put("config", CONFIG)
        world.put("subnets/10.244.77.0-24", PEER)
        agent = world.agent("--audit-interval=1h")
        agent.wait_ready()
        yield world, agent
        world.close()
        for netns in made:
            netns.close()


def state(node: Netns) -> str:
    """Return all that the agent keeps, as an operator would read it."""
    (device,) = node.ip_json("link", "show", "overlay.1")
    vxlan = device["linkinfo"]["info_data"]
    return "\n".join(
        [
            f"{device['address']} {device['mtu']} {'UP' in device['flags']} {vxlan['learning']}",
            f"{vxlan['local']} {vxlan['link']} {vxlan['port']}",
            *sorted(node.ip("route", "show", "table", "all", "proto", "79").splitlines()),
            *sorted(node.ip("neigh", "show", "dev", "overlay.1", "nud", "permanent").splitlines()),
            *sorted(node.run("bridge", "fdb", "show", "dev", "overlay.1").splitlines()),
            node.ip("-4", "-o", "addr", "show", "dev", "overlay.1").split("valid_lft")[0][3:],
            node.ip("rule", "show"),
            node.nft("--stateless", "list", "table", "inet", "overlay"),
            node.sysctl("net/ipv4/ip_forward"),
        ]
    )


def try_state(node: Netns) -> str:
    try:
        return state(node)
    except (AssertionError, ValueError) as exc:  # half of it is not there just now
        return str(exc)


@pytest.mark.parametrize(
    "damage",
    [
        "ip route del 10.244.77.0/24",
        "ip route replace 10.244.77.0/24 dev eth0",
        "ip route del 192.0.2.2 table 20310",
        "ip route flush table main proto 79",
        "ip neigh del 10.244.77.0 dev overlay.1",
        "ip neigh replace 10.244.77.0 lladdr 02:00:00:00:00:77 dev overlay.1 nud permanent",
        "ip neigh replace 10.244.77.0 lladdr c6:1d:62:0e:11:22 dev overlay.1 nud reachable",
        "bridge fdb del c6:1d:62:0e:11:22 dev overlay.1",
        "bridge fdb replace c6:1d:62:0e:11:22 dev overlay.1 dst 192.0.2.9 self permanent",
        "bridge fdb append 02:00:00:00:00:99 dev overlay.1 dst 192.0.2.9",
        "ip addr del 10.244.77.0/32 dev overlay.1",
        "ip link set overlay.1 down",
        "ip link set overlay.1 mtu 1200",
        "ip link set overlay.1 address 02:00:00:00:00:55",
        "ip link del overlay.1",
        "ip rule del priority 20310",
        "nft flush ruleset",
        "nft delete table inet overlay",
        "nft flush chain inet overlay ov_postrouting",
        "nft add rule inet overlay ov_postrouting accept",
        "nft flush set inet overlay ov_nodes4",
        "sysctl -qw net.ipv4.ip_forward=0",
    ],
)
def test_damage_is_repaired_at_once(fabric: tuple[World, RunningAgent], damage: str) -> None:
    world, agent = fabric
    node = world.node
    own = node.ip_json("addr", "show", "dev", "overlay.1")[0]["addr_info"][0]["local"]
    eventually(lambda: agent.get("/readyz")[0] == 200)
    before, told = state(node), agent.log
    words = damage.replace("ip addr del 10.244.77.0/32", f"ip addr del {own}/32").split()
    node.run(*words)
    started = time.monotonic()
    eventually(lambda: try_state(node) == before, timeout_s=15, what=f"{agent.log[-2000:]}")
    assert agent.log != told, "the damage was done, and its repair named"
    print(f"{damage}: {1000 * (time.monotonic() - started):.0f} ms")


def test_renamed_device_is_taken_back(fabric: tuple[World, RunningAgent]) -> None:
    world, _ = fabric
    before = state(world.node)
    world.node.ip("link", "set", "overlay.1", "down")
    eventually(lambda: try_state(world.node) == before, timeout_s=15)
    world.node.ip("link", "set", "overlay.1", "down")
    world.node.run("ip", "link", "set", "overlay.1", "name", "other0", check=False)
    eventually(lambda: try_state(world.node) == before, timeout_s=15)
    assert "other0" not in world.node.ip("link")


def test_a_quiet_fabric_is_quiet(fabric: tuple[World, RunningAgent]) -> None:
    """Our own writes come back as notices; they must not set off passes of their own for ever."""
    _, agent = fabric

    def passes() -> str:
        text = agent.get("/metrics")[1]
        return next(x for x in text.splitlines() if x.startswith("overlay_reconcile_passes_total"))

    before = passes()
    time.sleep(1.0)  # time in which nothing happens is what this is about
    assert passes() == before
