"""``overlayctl explain`` names faults that are really there, and nothing where all is well."""

import json
from collections.abc import Iterator
from uuid import uuid4

import pytest

from overlay.lab.fabric import running
from overlay.lab.faults.fault import Fault
from overlay.lab.faults.ways import WAYS
from overlay.lab.topology import LabOptions
from overlay.model.address import FAMILIES, Family
from tests.e2e.ways import Scene, mend_of
from tests.kernel.netns import eventually, host_unchanged

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    options = LabOptions(name=f"t-{uuid4().hex[:8]}", nodes=3, pods=2)
    with host_unchanged(), running(options) as lab:
        yield asked_of(Scene(lab))


@pytest.fixture(scope="module")
def dual() -> Iterator[Scene]:
    options = LabOptions(name=f"t-{uuid4().hex[:8]}", nodes=2, pods=2, families=FAMILIES)
    with host_unchanged(), running(options) as lab:
        yield asked_of(Scene(lab))


def asked_of(scene: Scene) -> Scene:
    """Return ``scene`` once its nodes have the fabric's key: the first agent makes it by and by."""
    eventually(
        lambda: json.loads(scene.ask("explain n1 n2 -o json").stdout)["far"]["asked"],
        timeout_s=30,
        what="an answer of n2",
    )
    return scene


@pytest.mark.parametrize("fault", WAYS, ids=lambda fault: fault.name)
def test_planted_fault_is_named_and_its_mend_mends(scene: Scene, fault: Fault) -> None:
    """The very words, run by a shell: what an operator would copy."""
    expected = scene.filled(fault.expected)
    assert expected not in scene.ask(fault.asked).stdout
    with scene.planted(fault):
        found = scene.ask(fault.asked)
        assert expected in found.stdout, found.stdout + found.stderr
        assert found.returncode == 1, found.stdout
        if fault.where == "underlay":  # nothing on a node mends what another host drops
            assert not mend_of(found.stdout)
            return
        scene.carry_out(mend_of(found.stdout))
        after = scene.ask(fault.asked)
        assert expected not in after.stdout, after.stdout
        if "stale" in fault.name:  # then nobody has the address
            return
        if after.returncode:  # what went with an address is named once that is back
            scene.carry_out(mend_of(after.stdout))
            after = scene.ask(fault.asked)
        assert after.returncode == 0, after.stdout


WHOLE = [
    ("{pod1} {pod2}", "pod to a pod of another node", "{pod2} is there"),
    ("{pod2} {pod1}", "pod of another node to a pod", "encapsulated"),
    ("{pod1} {public2}", "pod to another node", "{public2} is there"),
    ("{public2} {pod1}", "another node to a pod", "encapsulated"),
    ("{pod1} {pod2} --local", "without asking", "as its lease says (--local: not asked)"),
    ("{pod1} {pod2} --at-port 9", "nobody listens", "({public2} port 9): [Errno 111] Connection"),
    ("{pod1} {public1}", "pod to its node", "192.0.2.1 is this node's own"),
    ("{pod1} 198.51.100.1 --port 80", "pod to the outside", "becomes this node's address"),
    ("n1-p1 n1-p2", "pod to pod by name", "container n1-p2 has"),
    ("node {pod2}", "node to a pod", "overlay.1 VNI 1"),
    ("n1 n2", "node to node", "eth0"),
    ("n1-p1 n2 --proto udp --port 53", "with a port", "overlay.1"),
]


@pytest.mark.parametrize(("asked", "what", "shown"), WHOLE, ids=lambda text: text)
@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_whole_way_breaks_nowhere(
    scene: Scene, asked: str, what: str, shown: str, form: str
) -> None:
    done = scene.ask(f"explain {asked} -o {form}")
    assert done.returncode == 0, (what, done.stdout, done.stderr)
    shown = scene.filled(shown).replace("192.0.2.1", scene.names["public1"])
    # YAML doubles quotes and folds long lines.
    assert shown in " ".join(done.stdout.replace("''", "'").split())


@pytest.mark.parametrize("asked", ["{pod1} {pod2}", "{pod2} {pod1}", "n1 n2", "n2 n1"])
@pytest.mark.parametrize("family", ["4", "6"])
def test_other_node_tells_its_half(dual: Scene, asked: str, family: str) -> None:
    pods = {pod.name: str(pod.addresses[Family(int(family))]) for pod in dual.lab.pods()}
    asked = asked.format(pod1=pods["n1-p1"], pod2=pods["n2-p1"])
    document = json.loads(dual.ask(f"explain {asked} --family {family} -o json").stdout)
    assert document["broken"] is None
    assert document["far"] == {"node": "n2", "asked": True, "why": None}
    states = {step["state"] for step in document["steps"]}
    assert states == {"ok"}
    for way in ("n2 ", "answer, n2 "):
        assert any(step["place"].startswith(way) for step in document["steps"])


def test_nothing_of_the_other_host_is_told(dual: Scene) -> None:
    """What is in no lease stays there: its rules, links, paths and names of pods."""
    rule = "inet secretly hush ip daddr {pod2} counter drop comment classified"
    dual.run("n2", "nft", "add", "table", "inet", "secretly")
    hook = "{ type filter hook forward priority 0 ; }"
    dual.run("n2", "nft", "add", "chain", "inet", "secretly", "hush", hook)
    try:
        dual.run("n2", "nft", "add", "rule", *dual.filled(rule).split())
        done = dual.ask("explain {pod1} {pod2} -o json")
        told = [s for s in json.loads(done.stdout)["steps"] if s["place"].startswith("n2 ")]
        assert "a rule of the host, which is not the fabric's, stops it" in json.dumps(told)
        for word in ("secretly", "hush", "classified", "/run/netns", "opod", "n2-p1", "eth0"):
            assert word not in json.dumps(told)
    finally:
        dual.run("n2", "nft", "delete", "table", "inet", "secretly")


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("asked", ["n1-p1 n2", "n1-p1 n1-p2", "n1 n2", "n1-p1 node", "node n1-p2"])
def test_both_families_have_a_way(dual: Scene, family: str, asked: str) -> None:
    done = dual.ask(f"explain {asked} --family {family} --live -o json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["broken"] is None
    assert (":" in document["destination"]["address"]) == (family == "6")
    assert document["live"]["verdict"].startswith(("answered after", "the probe passes no"))


@pytest.mark.parametrize(
    ("asked", "status", "shown"),
    [
        ("n1-p1 2001:db8:2::1 --port 80", 0, "becomes this node's address"),
        ("node 2001:db8:2::1", 0, "2001:db8:2::1 lies outside the fabric"),
        ("2001:db8:2::1 n1-p1", 0, "2001:db8:2::1 would come in by eth0"),
        ("n1-p1 fd00:10:244:fff0::5", 1, "is of the pod network, and no node holds a lease"),
    ],
)
def test_off_the_fabric_by_ipv6(dual: Scene, asked: str, status: int, shown: str) -> None:
    done = dual.ask(f"explain {asked} --family 6")
    assert done.returncode == status, done.stdout + done.stderr
    assert shown in done.stdout


def test_probe_is_seen_on_every_device_of_its_way(dual: Scene) -> None:
    done = dual.ask("explain {pod1} {pod2} --live -o json")
    seen = [
        (s["device"], s["direction"], s["what"]) for s in json.loads(done.stdout)["live"]["seen"]
    ]
    link = dual.names["link1"]
    assert seen == [
        (link, "in", "probe"),
        ("overlay.1", "out", "probe"),
        ("eth0", "out", "probe"),
        ("eth0", "in", "answer"),
        ("overlay.1", "in", "answer"),
        (link, "out", "answer"),
    ]


def test_closed_port_is_told_from_a_lost_probe(dual: Scene) -> None:
    done = dual.ask("explain {pod1} {pod2} --proto udp --port 9999 --live")
    assert "UDP datagram: refused: an ICMP error came by" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("nobody {pod1}", "'nobody' is no address, no pod or container of this node"),
        ("{pod2} {public2}", "neither {pod2} nor {public2} is on this node; ask on n2"),
        ("{pod1} fd00::1", "{pod1} and fd00::1 are of different families"),
        ("{pod1} {pod2} --port 0", "--port 0: 1 to 65535, with --proto tcp or udp"),
        ("{pod1} {pod2} --port 80 --proto icmp", "--port 80: 1 to 65535, with --proto tcp or udp"),
        ("{pod1} 224.0.0.1", "224.0.0.1: not an address that one packet goes to"),
        ("{pod2} {pod1} --live", "--live: {pod2} is not on this node; ask on n2"),
    ],
)
def test_question_that_makes_no_sense_is_refused(scene: Scene, asked: str, said: str) -> None:
    done = scene.ask(f"explain {asked}")
    assert scene.filled(said) in done.stderr
    assert done.returncode == 2
