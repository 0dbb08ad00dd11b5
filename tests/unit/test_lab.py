"""The lab's plan, its search for sizes and its judgement, without any I/O."""

import json
import os
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from overlay.lab import pods, search
from overlay.lab.errors import LabError, LabExistsError, LabUsageError, NoLabError
from overlay.lab.matrix import (
    Endpoint,
    Expected,
    Flow,
    Observation,
    Outcome,
    Result,
    Role,
    flows,
)
from overlay.lab.processes import Process, identify, spawn, stop
from overlay.lab.search import SMALLEST, Measurement, Verdict
from overlay.lab.state import StateDir
from overlay.lab.topology import LabOptions, plan
from overlay.model.address import FAMILIES, Family
from overlay.model.egress import EgressMode

V4 = Family.IPV4


def walk(limit: int, likely: int | None, *, silent: bool = False) -> tuple[Measurement, int]:
    """Search a path that carries ``limit`` bytes; return what is found and the packets it took."""
    steps = search.measure(likely, attempts=3)
    attempt, sent = next(steps), 0
    while True:
        sent += 1
        too_big = Verdict.LOST if silent else Verdict.TOO_BIG
        try:
            attempt = steps.send(Verdict.ANSWERED if attempt.size <= limit else too_big)
        except StopIteration as end:
            return end.value, sent


@pytest.mark.parametrize("limit", [SMALLEST, 576, 1280, 1449, 1450, 1451, 1500, 9000, 65535])
@pytest.mark.parametrize("likely", [None, 1450])
@pytest.mark.parametrize("silent", [False, True])
def test_search_finds_the_largest_packet(limit: int, likely: int | None, silent: bool) -> None:
    found, sent = walk(limit, likely, silent=silent)
    assert found == Measurement(Outcome.ANSWERED, limit)
    assert sent <= 20


def test_search_of_a_path_as_expected_takes_three_packets() -> None:
    assert walk(1450, 1450) == (Measurement(Outcome.ANSWERED, 1450), 3)


@pytest.mark.parametrize(
    ("verdict", "outcome", "packets"),
    [(Verdict.LOST, Outcome.LOST, 3), (Verdict.REFUSED, Outcome.REFUSED, 1)],
)
def test_search_of_a_closed_path(verdict: Verdict, outcome: Outcome, packets: int) -> None:
    steps = search.measure(1450, attempts=3)
    next(steps)
    for _ in range(packets - 1):
        steps.send(verdict)
    with pytest.raises(StopIteration) as end:
        steps.send(verdict)
    assert end.value.value == Measurement(outcome)


def endpoint(name: str, role: Role, address: str, node: str = "", *more: str) -> Endpoint:
    own = ip_address(address)
    sources = frozenset({own, *map(ip_address, more)})
    return Endpoint(name, f"ns-{name}", role, {V4: own}, sources, node)


N1 = endpoint("n1", Role.NODE, "192.0.2.1", "n1", "10.244.1.0", "2001:db8:1::1")
N2 = endpoint("n2", Role.NODE, "192.0.2.2", "n2", "10.244.2.0")
POD1 = endpoint("n1-p1", Role.POD, "10.244.1.2", "n1")
POD2 = endpoint("n2-p1", Role.POD, "10.244.2.2", "n2")
OUTSIDE = endpoint("outside", Role.OUTSIDE, "198.51.100.1")
ALL = [N1, N2, POD1, POD2, OUTSIDE]


def expectation(egress: EgressMode, source: Endpoint, target: Endpoint) -> str:
    asked = flows(ALL, [V4], Expected(egress, 1450, 1500))
    return next(str(f.expectation) for f in asked if (f.source, f.target) == (source, target))


@pytest.mark.parametrize(
    ("source", "target", "island", "isolated", "flat"),
    [
        (POD1, POD2, *["from 10.244.1.2, 1450 bytes"] * 3),
        (POD1, N1, *["from 10.244.1.2, 1450 bytes"] * 3),
        (POD1, N2, *["from 10.244.1.2, 1450 bytes"] * 3),
        (N1, POD2, *["from 10.244.1.0 or 192.0.2.1, 1450 bytes"] * 3),
        (N1, N2, *["from 192.0.2.1, 1500 bytes"] * 3),
        (POD1, OUTSIDE, "from 192.0.2.1, 1450 bytes", "refused", "from 10.244.1.2, 1450 bytes"),
        (
            OUTSIDE,
            POD1,
            "lost or refused",
            "lost or refused",
            "from 198.51.100.1, 1450 bytes",
        ),
    ],
)
def test_expectations(
    source: Endpoint, target: Endpoint, island: str, isolated: str, flat: str
) -> None:
    modes = (EgressMode.ISLAND, EgressMode.ISOLATED, EgressMode.FLAT)
    assert [expectation(mode, source, target) for mode in modes] == [island, isolated, flat]


A = Outcome.ANSWERED
SELF, NODE = ip_address("10.244.1.2"), ip_address("192.0.2.1")


@pytest.mark.parametrize(
    ("egress", "target", "seen", "problems"),
    [
        pytest.param(EgressMode.ISLAND, POD2, Observation(A, A, SELF, SELF, 1450), (), id="fine"),
        pytest.param(
            EgressMode.ISLAND,
            POD2,
            Observation(A, A, NODE, NODE, 1450),
            ("UDP seen from 192.0.2.1, not 10.244.1.2", "TCP seen from 192.0.2.1, not 10.244.1.2"),
            id="NAT between pods",
        ),
        pytest.param(
            EgressMode.ISLAND,
            POD2,
            Observation(A, A, SELF, SELF, 1400),
            ("largest packet 1400 bytes, not 1450",),
            id="a smaller path",
        ),
        pytest.param(
            EgressMode.ISOLATED,
            OUTSIDE,
            Observation(Outcome.LOST, Outcome.REFUSED, error=113),
            ("UDP lost (EHOSTUNREACH), not refused",),
            id="dropped in silence",
        ),
        pytest.param(
            EgressMode.ISOLATED,
            OUTSIDE,
            Observation(Outcome.REFUSED, Outcome.REFUSED, source=SELF),
            ("arrived all the same, from 10.244.1.2",),
            id="got out",
        ),
    ],
)
def test_judgement(
    egress: EgressMode, target: Endpoint, seen: Observation, problems: tuple[str, ...]
) -> None:
    asked = flows(ALL, [V4], Expected(egress, 1450, 1500))
    flow: Flow = next(f for f in asked if (f.source, f.target) == (POD1, target))
    assert Result(flow, seen).problems == problems


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nodes": 0}, "--nodes 0 is out of range; use 1 to 250"),
        ({"nodes": 251}, "--nodes 251 is out of range; use 1 to 250"),
        ({"pods": -1}, "--pods -1 is out of range; use 0 to 200"),
        ({"mtu": 500}, "--mtu 500 is out of range; use 1400 to 9216"),
        ({"name": "../x"}, "lab name '../x': use up to 20 of a-z, 0-9 and -"),
        (
            {"backend": "host-gw", "direct_routing": True},
            "--direct-routing is an option of vxlan, not of host-gw",
        ),
    ],
)
def test_bad_options_get_one_line(options: dict[str, object], text: str) -> None:
    with pytest.raises(LabUsageError) as caught:
        LabOptions(**options)  # type: ignore[arg-type]  # a table of keywords
    assert str(caught.value) == text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("families", [(V4,), (Family.IPV6,), FAMILIES])
def test_plan_is_a_config_that_agents_read(families: tuple[Family, ...]) -> None:
    topology = plan(LabOptions(nodes=250, pods=2, families=families))
    assert topology.config.families == families
    addresses = [node.address(f) for node in topology.nodes for f in families]
    gateways = {g for node in topology.nodes for g in node.gateways.values()}
    assert len(set(addresses)) == 250 * len(families)
    assert gateways.isdisjoint(addresses)
    assert len(set(topology.namespaces)) == 2 + 250 * 3


def test_unknown_target_is_told_what_there_is() -> None:
    topology = plan(LabOptions(nodes=1, pods=1))
    with pytest.raises(LabUsageError, match="there are underlay, outside, n1, n1-p1"):
        topology.namespace_of("n2")


FILE = """FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.3.1/24
FLANNEL_IPV6_NETWORK=fd00:10:244::/48
FLANNEL_IPV6_SUBNET=fd00:10:244:3::1/64
FLANNEL_MTU=1430
FLANNEL_IPMASQ=true
"""


def test_subnet_file_is_read() -> None:
    file = pods.parse_subnet_file(FILE)
    assert file.mtu == 1430
    assert [str(subnet) for subnet in file.subnets.values()] == [
        "10.244.3.1/24",
        "fd00:10:244:3::1/64",
    ]


def test_pods_have_the_addresses_that_the_plugin_told(tmp_path: Path) -> None:
    topology = plan(LabOptions(nodes=1, pods=1, families=FAMILIES))
    state = StateDir(tmp_path)
    state.node("n1").mkdir(parents=True)
    with pytest.raises(LabError, match="pod n1-p1 was not attached"):
        pods.read_pods(topology, state)
    told = {
        "interfaces": [{"name": "opod0"}, {"name": "eth0"}],
        "ips": [{"address": "10.244.3.2/32"}, {"address": "fd00:10:244:3::2/128"}],
    }
    (state.node("n1") / "n1-p1.cni.json").write_text(json.dumps(told))
    (pod,) = pods.read_pods(topology, state)
    assert [str(a) for a in pod.addresses.values()] == ["10.244.3.2", "fd00:10:244:3::2"]
    assert pod.host_link == "opod0"


@pytest.mark.parametrize("text", ["", "FLANNEL_MTU=1450", "FLANNEL_SUBNET=10.244.3.1/24"])
def test_a_subnet_file_that_lacks_something_is_refused(text: str) -> None:
    with pytest.raises(LabError, match="subnet file"):
        pods.parse_subnet_file(text)


def test_state_survives_and_a_second_lab_of_the_name_is_refused(tmp_path: Path) -> None:
    options = LabOptions(name="a", families=FAMILIES, egress=EgressMode.FLAT)
    place = StateDir.of("a", tmp_path / "root")
    with pytest.raises(NoLabError):
        place.read()
    state = place.create(options, ["n1"]).with_processes([Process("etcd", 1, 2)])
    place.write(state)
    assert place.read() == state
    assert place.path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(LabExistsError):
        place.create(options, [])
    place.remove()
    place.remove()
    assert not (tmp_path / "root").exists()


def test_a_pid_that_now_is_another_process_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        named = identify("sleep", child.pid)
        stop([Process("sleep", named.pid, named.start_time - 1)])
        assert child.poll() is None
        stop([named])
    assert not named.is_alive


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["sh", "-c", "trap '' TERM; echo on; while :; do sleep 1; done"]
    process = spawn("stubborn", command, log, {})
    while "on" not in log.read_text():
        os.sched_yield()
    stop([process], grace_s=0.2)
    stop([process])
    assert not process.is_alive
