"""Whole fabrics with the real agent: every flow as it must be, and nothing left behind."""

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.lab import netns, processes
from overlay.lab.errors import LabError, LabExistsError, NoLabError
from overlay.lab.fabric import Lab, running, strays
from overlay.lab.matrix import Result
from overlay.lab.pods import Pod
from overlay.lab.state import STATE_ROOT
from overlay.lab.topology import LabOptions, namespace_prefix, plan
from overlay.model.address import FAMILIES, Family
from overlay.model.egress import EgressMode

V4, V6 = (Family.IPV4,), (Family.IPV6,)
DEADLINE_S = 30.0
OVERLAYCTL = str(Path(sys.executable).parent / "overlayctl")


def host_picture() -> str:
    """Return the host's own devices, addresses, routes, rules and firewall."""
    asked = (
        *("ip -br link", "ip addr", "ip route show table all", "ip -6 route show table all"),
        *("ip rule", "ip -6 rule", "nft list ruleset", "sysctl net.ipv4.ip_forward"),
    )
    return "\n".join(
        subprocess.run(words.split(), capture_output=True, text=True, check=True).stdout
        for words in asked
    )


def settled(picture: str) -> str:
    """Return the picture without lifetimes that count down by themselves."""
    return "\n".join(line for line in picture.splitlines() if "valid_lft" not in line)


@pytest.fixture
def name() -> Iterator[str]:
    """A lab name of the test's own; after the test the lab is gone and the host as it was."""
    before = settled(host_picture())
    name = f"t-{uuid.uuid4().hex[:8]}"
    yield name
    left = Lab(LabOptions(name=name))
    was_down = not left.dir.exists and not netns.existing(namespace_prefix(name))
    left.down()
    assert was_down
    assert settled(host_picture()) == before


def wrong(results: list[Result]) -> list[str]:
    return [
        f"{r.flow.source.name} to {r.flow.target.name} {r.flow.family}: {'; '.join(r.problems)}"
        for r in results
        if not r.is_expected
    ]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"families": FAMILIES}, id="vxlan island dual"),
        pytest.param({"families": V4, "egress": EgressMode.FLAT}, id="vxlan flat 4"),
        pytest.param({"families": V6, "egress": EgressMode.ISOLATED}, id="vxlan isolated 6"),
        pytest.param({"families": FAMILIES, "egress": EgressMode.ISOLATED}, id="isolated dual"),
        pytest.param({"families": V4, "backend": "host-gw"}, id="host-gw island 4"),
        pytest.param({"families": FAMILIES, "direct_routing": True}, id="direct routing dual"),
        pytest.param({"families": V6, "mtu": 9000}, id="jumbo underlay 6"),
    ],
)
def test_every_flow_is_as_it_must_be(name: str, options: dict[str, object]) -> None:
    nodes = 3
    lab = Lab(LabOptions(name=name, nodes=nodes, pods=2, **options))  # type: ignore[arg-type]  # a table of keywords
    lab.up()
    try:
        started = lab.dir.read().processes
        results = lab.test()
    finally:
        lab.down()
    assert wrong(results) == []
    per_family = 30 + 18 + 18 + 6 + 6 + 6
    assert len(results) == per_family * len(lab.options.families)
    assert len(started) == nodes + 1
    assert not any(process.is_alive for process in started)
    assert not strays(lab.topology)


def test_lab_test_finds_what_is_broken(name: str) -> None:
    """The test of the test: each kind of damage is named, and what is whole is not."""
    with running(LabOptions(name=name, nodes=2, pods=1)) as lab:
        n1, n2 = lab.topology.nodes
        pod = pod_of(lab, "n2")
        agents = [lab.agent(n.name) for n in (n1, n2)]
        processes.stop(agents)  # so that nobody mends it
        netns.ip_batch(n2.namespace, [f"link set {pod.host_link} mtu 1400"])
        seen = wrong(lab.test())
        assert "n1-p1 to n2-p1 IPv4: largest packet 1400 bytes, not 1450" in seen
        netns.ip_batch(n2.namespace, [f"link set {pod.host_link} mtu 1450"])
        nft = lab.command("n1", ["nft", "delete", "table", "inet", "overlay"])
        subprocess.run(nft, check=True)
        seen = wrong(lab.test())
        source = pod_of(lab, "n1").addresses[Family.IPV4]
        lost = "UDP lost, not answered; TCP lost, not answered"
        unmasked = f"UDP seen from {source}, not 192.0.2.1"
        assert seen == [f"n1-p1 to outside IPv4: {lost}; {unmasked}"]
        netns.ip_batch(n1.namespace, [f"link set {pod_of(lab, 'n1').host_link} down"])
        assert any(line.startswith("n1-p1 to n2-p1 IPv4: UDP ") for line in wrong(lab.test()))


def pod_of(lab: Lab, node: str) -> Pod:
    return next(pod for pod in lab.pods() if pod.node == node)


def test_agents_that_stop_leave_traffic_flowing(name: str) -> None:
    with running(LabOptions(name=name, nodes=2, pods=1, families=FAMILIES)) as lab:
        processes.stop([lab.agent("n1"), lab.agent("n2")])
        assert wrong(lab.test()) == []


def test_second_lab_of_a_name_is_refused_and_the_first_lives_on(name: str) -> None:
    with running(LabOptions(name=name, nodes=1, pods=1)) as lab:
        with pytest.raises(LabExistsError, match=f"lab down --name {name}"):
            Lab(lab.options).up()
        assert wrong(lab.test()) == []


def test_a_lab_that_fails_half_way_leaves_nothing(name: str) -> None:
    lab = Lab(LabOptions(name=name, nodes=1, backend="no-such-backend"))
    with pytest.raises(LabError):
        lab.up()
    assert not lab.dir.exists
    assert netns.existing(namespace_prefix(name)) == []


@pytest.mark.parametrize("moment", ["state.json", "etcd/etcd.log", "nodes/n2/overlayd.log"])
def test_down_clears_what_a_killed_up_left(name: str, moment: str) -> None:
    command = [OVERLAYCTL, "lab", "up", "--name", name]
    up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + DEADLINE_S
    while not (STATE_ROOT / name / moment).exists():
        assert up.poll() is None
        assert time.monotonic() < deadline
    up.kill()
    up.wait(10)
    lab = Lab(LabOptions(name=name))
    lab.down()
    lab.down()
    assert not lab.dir.exists
    assert netns.existing(namespace_prefix(name)) == []
    assert not strays(plan(lab.options))


def test_interrupted_up_cleans_up_after_itself(name: str) -> None:
    command = [OVERLAYCTL, "lab", "up", "--name", name]
    up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert up.stderr is not None
    for line in up.stderr:
        if "agents" in line:
            break
    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=DEADLINE_S)
    assert up.returncode != 0
    assert netns.existing(namespace_prefix(name)) == []


def test_commands_from_up_to_down(name: str) -> None:
    def overlayctl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [OVERLAYCTL, "lab", *words], capture_output=True, text=True, check=False
        )

    assert overlayctl("status", "--name", name).returncode == NoLabError.exit_code
    up = overlayctl("up", "--nodes", "2", "--pods", "1", "--name", name, "-o", "json")
    try:
        assert up.returncode == 0, up.stderr
        assert json.loads(up.stdout)["ready"] is True
        status = json.loads(overlayctl("status", "--name", name, "-o", "json").stdout)
        assert [pod["name"] for pod in status["pods"]] == ["n1-p1", "n2-p1"]
        tested = overlayctl("test", "--name", name, "-o", "json")
        assert tested.returncode == 0, tested.stdout
        assert all(row["ok"] for row in json.loads(tested.stdout))
        assert "all " in overlayctl("test", "--name", name).stdout
        shown = overlayctl("exec", "--name", name, "n1-p1", "--", "ip", "-br", "-4", "addr")
        assert status["pods"][0]["addresses"][0] in shown.stdout
        assert overlayctl("exec", "--name", name, "n2", "--", "false").returncode == 1
        assert overlayctl("exec", "--name", name, "n9", "--", "true").returncode == 2
    finally:
        down = overlayctl("down", "--name", name)
    assert down.returncode == 0, down.stderr
    assert overlayctl("down", "--name", name).returncode == 0
