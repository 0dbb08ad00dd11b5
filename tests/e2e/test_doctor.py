"""``overlayctl doctor`` on a node of a real fabric: agent, etcd and peers, sound and spoiled."""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from overlay.cli.doctor.lazy import Lazy
from overlay.cli.doctor.runner import Report, run_one
from overlay.store.memory import MemoryLeaseStore
from tests.e2e.agents import World
from tests.kernel.doctors import BY_NAME, facts_of, lease, said
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

NETWORK = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
PEER_KEY = "subnets/10.244.77.0-24"
PEER = (
    '{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"c6:1d:62:0e:11:22"}}'
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return a node with a ready agent, etcd and one peer that answers echoes."""
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        here = World(make, tmp_path)
        try:
            here.start_etcd()
            here.put("config", NETWORK)
            here.put(PEER_KEY, PEER)
            here.agent().wait_ready()
            yield here
        finally:
            here.close()
            for netns in made:
                netns.close()


def flags(world: World) -> list[str]:
    return [f"--root={world.place}", f"--state-dir={world.place}"]


def doctor(world: World, *more: str) -> dict[str, dict[str, Any]]:
    """Return what every check says, by its name."""
    text = world.overlayctl("doctor", "-o", "json", *flags(world), *more, check=False)
    return {found["check"]: found for found in json.loads(text)["checks"]}


def finding(world: World, name: str) -> str:
    """Return what one check finds. Raises AssertionError where it finds nothing."""
    found = doctor(world, f"--only={name}")[name]
    assert found["status"] == "finding", found
    return "\n".join(each["reason"] for each in found["findings"])


def stop_agent(world: World) -> None:
    """End the agent as a crash does: what is in the kernel and the store stays."""
    for agent in world.agents:
        agent.kill()
        agent.wait(10)


def test_sound_node_has_no_finding(world: World) -> None:
    found = doctor(world)
    spoiled = {name: each for name, each in found.items() if each["status"] != "fine"}
    assert set(spoiled) == {"cni-config"}, spoiled  # none is installed in this root
    assert set(found) == set(BY_NAME)
    assert found["agent"]["seen"] == [f"running, 1 peers, {own_subnet(world)}"]
    assert found["path-mtu"]["seen"] == ["1500 bytes reach 1 peers"]


def own_subnet(world: World) -> str:
    return next(
        key.replace("-", "/")
        for key, value in world.leases().items()
        if value["PublicIP"] == "192.0.2.1"
    )


def test_report_for_people_and_its_status(world: World) -> None:
    words = ["doctor", *flags(world), "--only=forwarding,conntrack"]
    assert world.overlayctl(*words) == ("2 checks: 2 fine, 0 could not be made, 0 findings\n")
    whole = world.overlayctl(*words, "--all").splitlines()
    assert whole[0].startswith("forwarding  fine     net/ipv4/ip_forward = 1")
    stop_agent(world)
    world.node.sysctl("net/ipv4/ip_forward", 0)
    with pytest.raises(AssertionError, match="status 1"):
        world.overlayctl(*words)
    assert world.overlayctl(*words, check=False) == (
        "forwarding  error    net/ipv4/ip_forward = 0: packets between pods and other nodes are "
        "dropped\n"
        "            mend     sysctl -w net/ipv4/ip_forward=1\n"
        "2 checks: 1 fine, 0 could not be made, 1 finding\n"
    )


def test_agent_that_died(world: World) -> None:
    stop_agent(world)
    assert "the agent does not answer, so nothing is repaired" in finding(world, "agent")


def test_problem_that_the_agent_tells_of(world: World) -> None:
    world.put("subnets/10.244.78.0-24", PEER.replace("192.0.2.2", "10.244.3.3"))
    eventually(lambda: doctor(world, "--only=agent")["agent"]["status"] == "finding", timeout_s=20)
    assert "public address 10.244.3.3 lies inside the pod network" in finding(world, "agent")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("ip route del 10.244.77.0/24", "set route 10.244.77.0/24 via 10.244.77.0 dev overlay.1"),
        ("ip neigh del 10.244.77.0 dev overlay.1", "set neigh 10.244.77.0 lladdr c6:1d:62"),
        (
            "bridge fdb replace c6:1d:62:0e:11:22 dev overlay.1 dst 192.0.2.9 self permanent",
            "set fdb c6:1d:62:0e:11:22 dev overlay.1 dst 192.0.2.2",
        ),
        ("ip link del overlay.1", "set link overlay.1 type vxlan id 1"),
        ("ip route add 10.244.99.0/24 dev eth0 proto 79", "del route 10.244.99.0/24"),
    ],
)
def test_kernel_that_lacks_what_the_leases_ask_for(world: World, damage: str, words: str) -> None:
    stop_agent(world)
    assert doctor(world, "--only=drift")["drift"]["status"] == "fine"
    world.node.run(*damage.split())
    assert words in finding(world, "drift")


def test_mac_address_that_somebody_changed(world: World) -> None:
    stop_agent(world)
    folder = world.place / "usr/lib/systemd/network"
    folder.mkdir(parents=True)
    (folder / "99-default.link").write_text("[Link]\nMACAddressPolicy=persistent\n")
    (folder / "98-others.link").write_text("[Match]\nDriver=veth\n[Link]\nMACAddressPolicy=none\n")
    world.node.ip("link", "set", "overlay.1", "address", "02:00:00:00:00:55")
    found = doctor(world, "--only=mac-address")["mac-address"]["findings"][0]
    assert "overlay.1 has MAC address 02:00:00:00:00:55, its lease has" in found["reason"]
    assert "99-default.link sets MACAddressPolicy=persistent" in found["reason"]
    world.node.run(*found["remedy"].split())
    assert doctor(world, "--only=mac-address")["mac-address"]["status"] == "fine"


def test_etcd_that_is_away(world: World) -> None:
    world.etcd.stop()
    with_agent = doctor(world, "--only=store,clock,unreadable-keys,drift")
    assert "give --etcd-endpoints" not in str(with_agent["store"])
    assert with_agent["store"]["status"] == "finding"
    assert "nothing new is learned and leases run out" in str(with_agent["store"])
    assert [with_agent[n]["status"] for n in ("clock", "unreadable-keys")] == ["unknown"] * 2
    assert with_agent["drift"]["status"] == "fine", "the agent knows"


def test_etcd_that_only_overlayctl_does_not_reach(world: World) -> None:
    found = doctor(world, "--only=store", "--etcd-endpoints=http://127.0.0.1:1")["store"]
    assert found["status"] == "unknown"
    assert "the agent is connected, overlayctl is not" in found["unknown"][0]


def test_keys_that_cannot_be_read(world: World) -> None:
    world.put("subnets/10.244.79.0-24", "{")
    world.put("subnets/$(reboot)", "{}")
    found = doctor(world, "--only=unreadable-keys")["unreadable-keys"]["findings"]
    assert [each["remedy"] for each in found] == [
        "etcdctl del '/coreos.com/network/subnets/$(reboot)'",
        "etcdctl del /coreos.com/network/subnets/10.244.79.0-24",
    ]
    assert "/coreos.com/network/subnets/10.244.79.0-24 cannot be read" in found[1]["reason"]
    world.put("config", "[]")
    assert "/coreos.com/network/config" in finding(world, "store")


def test_two_leases_with_one_public_address(world: World) -> None:
    world.put("subnets/10.244.80.0-24", PEER.replace("11:22", "11:33"))
    found = doctor(world, "--only=duplicate-address")["duplicate-address"]["findings"][0]
    assert "2 leases have public address 192.0.2.2" in found["reason"]
    look, _, why = found["remedy"].partition("  # ")
    assert why == "release that of the node that is gone"
    assert "10.244.80.0/24" in world.overlayctl(*look.split()[1:]), "which one is not known here"
    world.overlayctl("leases", "release", "10.244.80.0/24")
    assert doctor(world, "--only=duplicate-address")["duplicate-address"]["status"] == "fine"


def test_another_lease_with_this_nodes_address(world: World) -> None:
    world.put("subnets/10.244.81.0-24", PEER.replace("11:22", "11:34").replace(".2.2", ".2.1"))
    found = doctor(world, "--only=duplicate-address")["duplicate-address"]["findings"][0]
    assert "2 leases have public address 192.0.2.1" in found["reason"]
    assert found["remedy"] == "overlayctl leases release 10.244.81.0-24", "not its own"
    world.overlayctl(*found["remedy"].split()[1:])
    assert doctor(world, "--only=duplicate-address")["duplicate-address"]["status"] == "fine"


def test_own_lease_that_is_gone(world: World) -> None:
    subnet = own_subnet(world)
    stop_agent(world)
    world.delete(f"subnets/{subnet.replace('/', '-')}")
    assert f"no lease is this node's, but its kernel has {subnet}" in finding(world, "own-lease")


def inside(world: World, name: str, **changes: Any) -> Report:
    """Return what a check says in the node, with facts that a test cannot make real."""
    endpoint = f"--etcd-endpoints={world.etcd.endpoint}"

    def run() -> Report:
        return run_one(BY_NAME[name], dataclasses.replace(facts_of(endpoint), **changes))

    return world.node.call(run)


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [(0.0, ""), (3600.0, " s ahead of that of http"), (-90.0, " s behind that of http")],
)
def test_clock_that_differs_from_the_stores(world: World, ahead_s: float, words: str) -> None:
    """The clock of a machine under test cannot be set; the one that is compared can."""
    report = inside(world, "clock", wall_clock=lambda: time.time() + ahead_s)
    assert report.status == ("finding" if words else "fine"), report
    assert words in said(report)


def test_path_that_swallows_large_packets(world: World) -> None:
    # A veth drops what is larger than the far end's MTU, and says nothing: a black hole.
    world.far.ip("link", "set", "eth0", "mtu", "1410")
    found = doctor(world, "--only=path-mtu")["path-mtu"]["findings"][0]
    assert found["reason"] == (
        "packets of 1500 bytes (overlay.1's MTU 1450 + 50) do not reach 192.0.2.2; 1400 do: large "
        "transfers hang"
    )
    assert ".Backend.MTU = 1350" in found["remedy"]


def test_peer_that_answers_no_echo(world: World) -> None:
    world.far.nft(
        "add table ip q; add chain ip q i { type filter hook input priority 0; }; "
        "add rule ip q i icmp type echo-request drop"
    )
    found = doctor(world, "--only=path-mtu")["path-mtu"]
    assert found["unknown"] == ["1 of 1 peers answer no echo: 192.0.2.2"]


@pytest.fixture
def here() -> Iterator[Netns]:
    netns = Netns()
    yield netns
    netns.close()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("margin_s", "left_s", "words"),
    [
        pytest.param(600, 400, "", id="not half of a short margin is over"),
        pytest.param(600, 200, "ends in 200 s", id="more than half of a short margin is over"),
        pytest.param(7200, 3500, "ends in 3500 s", id="more than half of a long margin is over"),
    ],
)
def test_margin_is_the_agents(here: Netns, margin_s: int, left_s: int, words: str) -> None:
    clock, own = Clock(), lease(1)
    here.ip("addr", "add", "192.0.2.1/32", "dev", "lo")
    store = MemoryLeaseStore(clock=clock)
    store.put_config('{"Network": "10.244.0.0/16"}')
    store.put_lease(own.subnet, own.attributes, 86400)
    clock.now_s += 86400 - left_s

    def run() -> Report:
        agent: Lazy[Mapping[str, Any]] = Lazy(lambda: {"renew_margin_s": margin_s})
        return run_one(
            BY_NAME["lease-end"], dataclasses.replace(facts_of(store=store), agent=agent)
        )

    report = here.call(run)
    assert (report.status == "finding") is bool(words), report
    assert words in said(report)


@pytest.mark.parametrize(
    ("ttl_s", "passed_s", "words"),
    [
        pytest.param(86400, 84000, "", id="just renewed in time"),
        pytest.param(86400, 84700, "this node's lease 10.244.1.0/24 ends in 1700 s", id="late"),
        pytest.param(60, 30, "", id="a short lease is no late one"),
        pytest.param(600, 590, "ends in 10 s and was not renewed", id="a short one, late"),
    ],
)
def test_lease_that_nobody_renewed(here: Netns, ttl_s: int, passed_s: float, words: str) -> None:
    clock, netns, own = Clock(), here, lease(1)
    netns.ip("addr", "add", "192.0.2.1/32", "dev", "lo")
    store = MemoryLeaseStore(clock=clock)
    store.put_config('{"Network": "10.244.0.0/16"}')
    store.put_lease(own.subnet, own.attributes, ttl_s)
    clock.now_s += passed_s
    report = netns.call(lambda: run_one(BY_NAME["lease-end"], facts_of(store=store)))
    assert (report.status == "finding") is bool(words), report
    assert words in said(report)
