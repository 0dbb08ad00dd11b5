"""What ``doctor`` makes of the agent's own measurements."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from overlay.cli.doctor.checks import mesh, path_mtu
from overlay.cli.doctor.fabric import Fabric
from overlay.cli.doctor.lazy import Lazy
from overlay.cli.doctor.runner import Report, run_one
from overlay.cli.doctor.verdicts import Fine
from overlay.model.address import IPAddress, MacAddress
from overlay.model.kernel import VxlanLink
from tests.kernel.doctors import facts_of

FACTS = facts_of()
MAC = MacAddress("02:00:00:00:00:01")


def record(*, silent: bool = False, loss: float = 0.0) -> dict[str, Any]:
    return {"rtt_ms": 0.4, "loss": loss, "silent": silent}


def mesh_says(**ways: tuple[Any, Any]) -> Report:
    """Return what the check says of peers by name, each with the records of its two ways."""
    peers = [
        {"node": name, "subnet": f"10.244.{number}.0/24", "overlay": over, "underlay": under}
        for number, (name, (over, under)) in enumerate(ways.items(), 2)
    ]
    found = {"node": "n1", "error": None, "probe_port": 9471, "peers": peers, "links": []}
    return run_one(mesh.CHECK, replace(FACTS, mesh=Lazy(lambda: found)))


def test_peers_that_answer_are_fine() -> None:
    report = mesh_says(n2=(record(), record()), n3=(None, record()), n4=(None, None))
    assert report.verdicts == (Fine("3 peers are measured"),)


@pytest.mark.parametrize(
    ("over", "under", "reason", "remedy"),
    [
        (
            record(silent=True, loss=1.0),
            record(),
            "n2: probes through the tunnel get no answer, those beside it do",
            "overlayctl explain node 10.244.2.0",
        ),
        (
            record(silent=True, loss=1.0),
            record(silent=True, loss=1.0),
            "n2: no probe gets an answer: down, or UDP 9471 closed",
            "ssh n2 systemctl status overlayd",
        ),
        (
            record(loss=0.25),
            record(),
            "n2: probes get lost, 25% of those to n2",
            "overlayctl mesh --links; overlayctl mesh --links --underlay",
        ),
    ],
)
def test_peer_that_does_not_answer_is_named(
    over: Any, under: Any, reason: str, remedy: str
) -> None:
    (found,) = mesh_says(n2=(over, under), n3=(record(), record())).findings
    assert (found.reason, found.remedy) == (reason, remedy)


def mtu_says(age_s: float, echoes: int) -> Report:
    """Return what is said of a way that the agent once found to be narrow."""

    def largest(peers: Iterable[IPAddress], _size: int) -> Mapping[IPAddress, int]:
        return dict.fromkeys(peers, echoes)

    peer = ip_address("192.0.2.2")
    device = VxlanLink("overlay.1", 1, 8472, MAC, 1450, ip_address("192.0.2.1"), "eth0")
    fabric = Fabric((device,), (device,), (), (), (peer,))
    rows = [{"node": "n2", "public": str(peer), "out": 1500, "back": 1404, "fits": False}]
    found = {"error": None, "age_s": age_s, "peers": rows}
    facts = replace(FACTS, fabric=Lazy(lambda: fabric), mtu=Lazy(lambda: found), echoes=largest)
    return run_one(path_mtu.CHECK, facts)


@pytest.mark.parametrize(
    ("age_s", "echoes", "words"),
    [
        pytest.param(1.0, 1500, "1500 bytes reach 1 peers", id="an echo tells how it is now"),
        pytest.param(1199.0, 0, "1404 do", id="no echo, but the agent knows"),
        pytest.param(1201.0, 0, "answer no echo", id="no echo, and long ago"),
    ],
)
def test_peer_that_answers_no_echo_is_known_by_the_agents_probes(
    age_s: float, echoes: int, words: str
) -> None:
    assert words in str(mtu_says(age_s, echoes).verdicts)
