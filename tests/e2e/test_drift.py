"""What others do to the kernel is put right when it happens; the audit is an hour off here."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.agents import RunningAgent, World
from tests.kernel.netns import Netns, eventually, host_unchanged, veth

pytestmark = pytest.mark.e2e

CONFIG: Final = (
    '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:1::/48", '
    '"Backend": {"Type": "vxlan"}}'
)
# Room for 65,536 subnets: routes have metrics (docs/decisions/0012), that to the peer 78.
WIDE: Final = CONFIG.replace("10.244.0.0/16", "10.0.0.0/8")
HOST_GW: Final = '{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}'
MAC: Final = "c6:1d:62:0e:11:22"
KEY: Final = "subnets/10.244.77.0-24&fd00:1:0:77::-64"
PEER: Final = (
    '{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2","BackendType":"vxlan",'
    f'"BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}},'
    f'"BackendV6Data":{{"VNI":1,"VtepMAC":"{MAC}"}}}}'
)
GATEWAY_PEER: Final = '{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"host-gw"}'
SYSCTLS: Final = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/overlay.1/forwarding",
    "net/ipv4/conf/eth0/forwarding",
    "net/ipv6/conf/overlay-v6.1/disable_ipv6",
    "net/ipv6/conf/overlay-v6.1/accept_ra",
)
# What one line of a table is too short for.
BY_NEXTHOP: Final = (
    "ip nexthop add id 10 via 192.0.2.9 fdb; ip nexthop add id 11 group 10 fdb; "
    f"printf 'fdb del {MAC} dev overlay.1\nfdb add {MAC} dev overlay.1 nhid 11\n' | "
    "bridge -batch -"
)
MOVED_RULE: Final = (
    "set -- $(ip rule show priority 20310); ip rule del priority 20310; "
    "ip rule add $2 $3 lookup 20310 priority 99 protocol 79"
)
ONE_RULE: Final = (
    "set -- $(nft -a list chain inet overlay ov_postrouting | grep -o 'handle [0-9]*$' | tail -1); "
    "nft delete rule inet overlay ov_postrouting handle $2"
)
Fabric = tuple[World, RunningAgent]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fabric]]:
    """Return a function that makes a node with one peer, and its agent, ready."""
    made: list[Netns] = []
    worlds: list[World] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    def build(config: str = CONFIG, audit: str = "1h", **peers: str) -> Fabric:
        world = World(make, tmp_path_factory.mktemp("drift"))
        worlds.append(world)
        world.start_etcd()
        world.put("config", config)
        for key, value in (peers or {KEY: PEER}).items():
            world.put(key, value)
        agent = world.agent(f"--audit-interval={audit}")
        agent.wait_ready()
        return world, agent

    with host_unchanged():
        yield build
        for world in worlds:
            world.close()
        for netns in made:
            netns.close()


@pytest.fixture(scope="module")
def fabric(start: Callable[..., Fabric]) -> Fabric:
    return start()


@pytest.fixture(scope="module")
def wide(start: Callable[..., Fabric]) -> Fabric:
    return start(WIDE)


@pytest.fixture
def fresh(start: Callable[..., Fabric]) -> Fabric:
    """Return a fabric of its own, whose agent has repaired nothing yet and so waits for nothing."""
    return start()


def state(node: Netns) -> str:
    """Return all that the agent keeps, as an operator would read it."""
    lines = []
    for name, version in (("overlay.1", "-4"), ("overlay-v6.1", "-6")):
        (device,) = node.ip_json("link", "show", name)
        vxlan = device["linkinfo"]["info_data"]
        lines += [
            f"{device['address']} {device['mtu']} {'UP' in device['flags']} {vxlan['learning']}",
            f"{vxlan.get('local') or vxlan['local6']} {vxlan['link']} {vxlan['port']}",
            *sorted(node.ip("neigh", "show", "dev", name, "nud", "permanent").splitlines()),
            *sorted(node.run("bridge", "fdb", "show", "dev", name).splitlines()),
            *re.findall(r"inet6? \S+", node.ip(version, "-o", "addr", "show", "dev", name)),
            *sorted(node.ip(version, "route", "show", "table", "all", "proto", "79").splitlines()),
            node.ip(version, "rule", "show"),
        ]
    lines.append(node.ip("route", "show", "10.244.77.0/24"))
    lines.append(node.nft("--stateless", "list", "table", "inet", "overlay"))
    return "\n".join([*lines, *(f"{name} {node.sysctl(name)}" for name in SYSCTLS)])


def try_state(node: Netns) -> str:
    try:
        return state(node)
    except (AssertionError, ValueError, KeyError, OSError) as exc:  # half of it is not there now
        return str(exc)


def damage_and_wait(fabric: Fabric, *commands: str) -> str:
    """Do the damage, wait until all is as it was, and return what the log says of it."""
    world, agent = fabric
    node = world.node
    eventually(lambda: agent.get("/readyz")[0] == 200, timeout_s=20)
    before, told = state(node), agent.log
    for command in commands:
        node.run("sh", "-ec", command)
    started = time.monotonic()
    what = f"repair of {commands}; {agent.log[-3000:]}"
    eventually(lambda: try_state(node) == before, timeout_s=20, what=what)
    print(f"{commands[-1]}: {1000 * (time.monotonic() - started):.0f} ms")
    # The words come before the damage is gone, or right after.
    eventually(lambda: agent.log != told, what="a word about it in the log")
    return agent.log.removeprefix(told)


def own_address(node: Netns) -> str:
    found = re.search(r"inet (10\.244\.\d+\.0/32)", node.ip("addr", "show", "dev", "overlay.1"))
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    "damage",
    [
        "ip route del 10.244.77.0/24",
        "ip route replace 10.244.77.0/24 dev eth0",
        "ip route replace 10.244.77.0/24 via 10.244.77.0 dev overlay.1 onlink proto 79 mtu 600",
        "ip route replace blackhole 10.244.77.0/24 proto 79",
        "ip route del 192.0.2.2 table 20310",
        "ip -6 route del fd00:1:0:77::/64",
        "ip -6 route replace fd00:1:0:77::/64 dev eth0 metric 1024",
        "ip route flush table main proto 79",
        "ip route flush table 20310",
        "ip route add 10.244.200.0/24 dev eth0 proto 79",
    ],
)
def test_route(fabric: Fabric, damage: str) -> None:
    damage_and_wait(fabric, damage)


@pytest.mark.parametrize(
    "damage",
    [
        "ip route add 10.244.77.0/24 dev eth0",
        "ip route add blackhole 10.244.77.0/24 metric 77",
        "ip route add 10.244.77.0/24 via 10.244.77.0 dev overlay.1 onlink proto 79",
        "ip route replace 10.244.77.0/24 dev eth0 metric 78",
        "ip route del 10.244.77.0/24",
        "ip route flush table main proto 79",
    ],
)
def test_route_of_a_network_with_room_for_many(wide: Fabric, damage: str) -> None:
    assert "metric 78" in wide[0].node.ip("route", "show", "10.244.77.0/24")
    assert "somebody else changed" in damage_and_wait(wide, damage)


@pytest.mark.parametrize(
    "damage",
    [
        "ip neigh del 10.244.77.0 dev overlay.1",
        "ip neigh replace 10.244.77.0 lladdr 02:00:00:00:00:77 dev overlay.1 nud permanent",
        f"ip neigh replace 10.244.77.0 lladdr {MAC} dev overlay.1 nud reachable",
        f"ip neigh replace 10.244.77.0 lladdr {MAC} dev overlay.1 nud noarp",
        "ip neigh del fd00:1:0:77:: dev overlay-v6.1",
        "ip neigh flush dev overlay.1 nud permanent",
        "ip neigh add 10.244.78.9 lladdr 02:00:00:00:00:99 dev overlay.1 nud permanent",
    ],
)
def test_neighbor(fabric: Fabric, damage: str) -> None:
    damage_and_wait(fabric, damage)


@pytest.mark.parametrize(
    "damage",
    [
        f"bridge fdb del {MAC} dev overlay.1",
        f"bridge fdb del {MAC} dev overlay-v6.1",
        f"bridge fdb replace {MAC} dev overlay.1 dst 192.0.2.9 self permanent",
        f"bridge fdb replace {MAC} dev overlay.1 dst 192.0.2.2 port 9999 self permanent",
        f"bridge fdb replace {MAC} dev overlay.1 dst 192.0.2.2 vni 7 self permanent",
        f"bridge fdb replace {MAC} dev overlay.1 dst 192.0.2.2 via eth0 self permanent",
        f"bridge fdb replace {MAC} dev overlay.1 dst 192.0.2.2 self dynamic",
        BY_NEXTHOP,
        "bridge fdb append 02:00:00:00:00:99 dev overlay.1 dst 192.0.2.9",
        "bridge fdb append 00:00:00:00:00:00 dev overlay.1 dst 192.0.2.9",
        "bridge fdb append 00:00:00:00:00:00 dev overlay.1 dst 192.0.2.9 port 7 vni 9 via eth0",
    ],
)
def test_forwarding_entry(fabric: Fabric, damage: str) -> None:
    damage_and_wait(fabric, damage)


@pytest.mark.parametrize(
    "damage",
    [
        "ip link set overlay.1 down",
        "ip link set overlay-v6.1 down",
        "ip link set overlay.1 mtu 1200",
        "ip link set overlay.1 address 02:00:00:00:00:55",
        "ip link set overlay.1 type vxlan learning",
        "ip link set overlay.1 alias mine",
        "ip link del overlay.1",
        "ip link del overlay-v6.1",
        "ip link set overlay.1 down && ip link set overlay.1 name other0",
        "ip link set overlay.1 down && ip link set overlay.1 name other0 && ip link set other0 up",
    ],
)
def test_device(fresh: Fabric, damage: str) -> None:
    damage_and_wait(fresh, damage)
    assert "other0" not in fresh[0].node.ip("link")


def test_device_that_takes_our_name_is_named_and_gives_way_to_ours_when_it_goes(
    fresh: Fabric,
) -> None:
    world, agent = fresh
    before = state(world.node)
    # The agent is as quick as a shell, so both in one go.
    batch = "link del overlay.1\nlink add overlay.1 type bridge\n"
    agent.process.send_signal(signal.SIGSTOP)
    world.node.run("ip", "-batch", "-", stdin=batch)
    agent.process.send_signal(signal.SIGCONT)
    agent.wait_for_reason("device overlay.1 exists, is not a VXLAN device, and is not ours")
    world.node.ip("link", "del", "overlay.1")
    eventually(lambda: try_state(world.node) == before, timeout_s=20, what=agent.log[-2000:])


@pytest.mark.parametrize(
    "damage",
    ["ip addr del OWN dev overlay.1", "ip addr add 10.9.9.9/32 dev overlay.1",
     "ip -6 addr flush dev overlay-v6.1 scope global"],
)  # fmt: skip
def test_address(fabric: Fabric, damage: str) -> None:
    damage_and_wait(fabric, damage.replace("OWN", own_address(fabric[0].node)))


@pytest.mark.parametrize(
    "damage",
    [
        "ip rule del priority 20310",
        "ip -6 rule del priority 20310",
        MOVED_RULE,
    ],
)
def test_rule(fabric: Fabric, damage: str) -> None:
    damage_and_wait(fabric, damage)


@pytest.mark.parametrize(
    "damage",
    [
        "nft flush ruleset",
        "nft delete table inet overlay",
        "nft flush chain inet overlay ov_postrouting",
        ONE_RULE,
    ],
)
def test_table(fresh: Fabric, damage: str) -> None:
    words = damage_and_wait(fresh, damage)
    assert re.search(r"somebody else changed the table inet overlay, nft \(pid \d+\)", words)


@pytest.mark.parametrize(
    "damage",
    [
        "nft add rule inet overlay ov_postrouting accept",
        "nft add chain inet overlay theirs",
        "nft flush set inet overlay ov_nodes4",
        "nft add element inet overlay ov_nodes4 '{ 192.0.2.99 }'",
    ],
)
def test_addition_to_the_table(fresh: Fabric, damage: str) -> None:
    damage_and_wait(fresh, damage)


@pytest.mark.parametrize(
    "damage",
    [
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -qw net/ipv4/conf/overlay.1/forwarding=0",
        "sysctl -qw net/ipv6/conf/overlay-v6.1/disable_ipv6=1",
        "sysctl -qw net/ipv6/conf/overlay-v6.1/accept_ra=1",
        "sysctl -qw net/ipv4/conf/eth0/forwarding=0",
    ],
)
def test_sysctl(fresh: Fabric, damage: str) -> None:
    damage_and_wait(fresh, damage)


@pytest.mark.parametrize(
    "damage",
    [
        "iptables -F OVERLAY-FORWARD",
        "iptables -D FORWARD -m comment --comment overlay-fabric -j OVERLAY-FORWARD",
        "iptables -F",
    ],
)
def test_way_through_iptables(fresh: Fabric, damage: str) -> None:
    """Docker's FORWARD chain drops; ours lets pods through, and comes back when it is flushed."""
    world, _ = fresh
    node = world.node
    node.run("iptables", "-P", "FORWARD", "DROP")

    def chains() -> str:
        return node.run("iptables", "-S")

    eventually(lambda: "-j OVERLAY-FORWARD" in chains(), timeout_s=20)
    eventually(lambda: "-A OVERLAY-FORWARD" in chains(), timeout_s=20)
    before = chains()
    node.run("sh", "-ec", damage)
    eventually(lambda: chains() == before, timeout_s=20)


def test_underlay_down_and_up(fresh: Fabric) -> None:
    world, agent = fresh
    before = state(world.node)
    # The kernel takes IPv6 addresses with it; who gave them gives them again.
    damage_and_wait(
        fresh,
        "ip link set eth0 down",
        "ip link set eth0 up; ip addr add 2001:db8::1/64 dev eth0 nodad",
    )
    assert state(world.node) == before
    agent.wait_ready()


def test_underlay_deleted_and_made_anew(fresh: Fabric) -> None:
    world, agent = fresh
    before = state(world.node)
    world.node.ip("link", "del", "eth0")
    agent.wait_for_reason("underlay interface eth0 does not exist")
    veth(world.node, "eth0", world.far, "eth0")
    world.node.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    world.node.ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    eventually(lambda: try_state(world.node) == before, timeout_s=20, what=agent.log[-2000:])
    agent.wait_ready()


def plain_route(node: Netns) -> str:
    return node.ip("route", "show", "10.244.77.0/24")


def test_plain_routes_come_back_with_the_underlay(start: Callable[..., Fabric]) -> None:
    world, agent = start(HOST_GW, **{"subnets/10.244.77.0-24": GATEWAY_PEER})
    route = plain_route(world.node)
    assert "via 192.0.2.2 dev eth0" in route
    for damage in (
        "ip link set eth0 down; ip link set eth0 up",
        "ip addr flush dev eth0; ip addr add 192.0.2.1/24 dev eth0",
        "ip link set eth0 down",
    ):
        world.node.run("sh", "-ec", damage)
        if damage.endswith("down"):
            agent.wait_for_reason("10.244.77.0/24")
            world.node.ip("link", "set", "eth0", "up")
        eventually(lambda: plain_route(world.node) == route, timeout_s=20, what=agent.log[-2000:])
        agent.wait_ready()


def test_flood_of_notices_while_the_agent_stands_still_hides_nothing(fresh: Fabric) -> None:
    world, agent = fresh
    before = state(world.node)
    agent.process.send_signal(signal.SIGSTOP)
    try:
        for damage in (
            "ip route del 10.244.77.0/24",
            f"bridge fdb append {MAC} dev overlay.1 dst 192.0.2.9",
            "ip link set overlay-v6.1 down",
        ):
            world.node.run(*damage.split())
        flood = "".join(
            f"route {verb} blackhole 100.{i}.{j}.0/24 table 999\n"
            for verb in ("add", "del")
            for i in range(80)
            for j in range(250)
        )
        world.node.run("ip", "-batch", "-", stdin=flood)
    finally:
        agent.process.send_signal(signal.SIGCONT)
    eventually(lambda: try_state(world.node) == before, timeout_s=20, what=agent.log[-2000:])
    eventually(lambda: "told more than could be read" in agent.log, what="a word about the loss")
    assert "overlay_kernel_notice_losses_total 0.0" not in agent.get("/metrics")[1]


def test_one_who_fights_is_named_by_status_and_does_not_keep_the_agent_busy(
    fresh: Fabric, tmp_path: Path
) -> None:
    world, agent = fresh
    script = tmp_path / "fighter"
    script.write_text(
        "#!/bin/sh\nwhile :; do nft delete table inet overlay 2>/dev/null; sleep 0.02; done\n"
    )
    fighter = world.node.start("sh", str(script))
    try:

        def named() -> str:
            said = world.overlayctl("status", check=False)
            return said if "again and again" in said else ""

        said = eventually(named, timeout_s=20, what=agent.log[-2000:])
        assert re.search(r"the table inet overlay, nft \(pid \d+\).* again and again", said)
        assert "overlay_contested_objects 1.0" in agent.get("/metrics")[1]
        before = applies(agent)
        time.sleep(2.0)  # time in which the other one works is what this is about
        assert applies(agent) - before <= 3
    finally:
        fighter.kill()
        fighter.wait(10)
    eventually(lambda: in_table(world.node), timeout_s=20, what="the table, put right in the end")


def applies(agent: RunningAgent) -> float:
    found = re.search(
        r"^overlay_ruleset_applies_total (\S+)", agent.get("/metrics")[1], re.MULTILINE
    )
    assert found is not None
    return float(found[1])


def in_table(node: Netns) -> bool:
    done = subprocess.run(
        ["nsenter", f"--net={node.path}", "nft", "list", "table", "inet", "overlay"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def test_a_quiet_fabric_is_quiet(fabric: Fabric) -> None:
    """Our own writes come back as notices; they must not set off passes of their own for ever."""
    _, agent = fabric

    def passes() -> str:
        text = agent.get("/metrics")[1]
        return next(x for x in text.splitlines() if x.startswith("overlay_reconcile_passes_total"))

    def is_calm() -> bool:
        before = passes()
        time.sleep(1.0)  # time in which nothing happens is what this is about
        return passes() == before

    eventually(is_calm, timeout_s=20, what="a second without a pass")
