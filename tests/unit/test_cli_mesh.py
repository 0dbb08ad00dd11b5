"""``mesh`` and ``mtu`` from an agent's answers, as a shell sees them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from overlay.agent.control import ControlServer
from overlay.cli.main import main

RECORD = {"rtt_ms": 0.4, "loss": 0.0, "silent": False}


def mesh(count: int, **more: Any) -> dict[str, Any]:
    names = [f"n{number:02}" for number in range(1, count + 1)]
    peers = [
        {"node": name, "subnet": "10.0.0.0/24", "overlay": RECORD, "underlay": RECORD}
        for name in names[1:]
    ]
    links = [
        {
            "from": a,
            "to": b,
            "overlay_ms": 0.4,
            "overlay_loss": 0.25 if b == "n02" else 0.0,
            "underlay_ms": 0.1,
            "underlay_loss": 0.0,
        }
        for a in names
        for b in names
        if a != b
    ]
    return {"node": "n01", "error": None, "peers": peers, "links": links, **more}


def mtu(*peers: tuple[str, int | None, int | None, bool | None]) -> dict[str, Any]:
    rows = [
        {"node": node, "public": "192.0.2.2", "out": out, "back": back, "fits": fits}
        for node, out, back, fits in peers
    ]
    return {
        "needed": 1500, "device_mtu": 1450, "underlay_mtu": 1500, "error": None, "peers": rows,
    }  # fmt: skip


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Return what the agent answers, by call; a test puts it there."""
    said: dict[str, Any] = {}

    def call(name: str) -> Callable[[Mapping[str, Any]], Any]:
        return lambda _given: said[name]

    server = ControlServer(tmp_path / "sock", {name: call(name) for name in ("mesh", "mtu")})
    yield said
    server.close()


@pytest.fixture
def run(answers: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    assert not answers

    def call(*argv: str) -> tuple[int, str]:
        status = main([f"--socket={tmp_path / 'sock'}", *argv], environment={})
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


def test_few_nodes_are_a_matrix(run: Run, answers: dict[str, Any]) -> None:
    answers["mesh"] = mesh(3)
    status, text = run("mesh")
    assert status == 0
    assert text == (
        "OVERLAY MS  n01   n02       n03\n"
        "n01         -     0.40 25%  0.40\n"
        "n02         0.40  -         0.40\n"
        "n03         0.40  0.40 25%  -\n"
    )
    assert run("mesh", "--underlay")[1].startswith("UNDERLAY MS")


def test_of_many_nodes_the_own_ways_are_listed_and_all_when_asked(
    run: Run, answers: dict[str, Any]
) -> None:
    answers["mesh"] = mesh(20)
    assert len(run("mesh")[1].splitlines()) == 20
    assert len(run("mesh", "--links")[1].splitlines()) == 1 + 20 * 19


def test_silent_peer_and_an_agent_that_does_not_measure_are_findings(
    run: Run, answers: dict[str, Any]
) -> None:
    silent = {**RECORD, "silent": True}
    peer = {"node": "n02", "subnet": "10.0.0.0/24", "overlay": silent, "underlay": None}
    answers["mesh"] = mesh(2, peers=[peer])
    assert run("mesh")[0] == 1
    answers["mesh"] = mesh(1, error="off: --probe-port is 0")
    status, text = run("mesh")
    assert status == 1
    assert "not measured: off: --probe-port is 0" in text


def test_mtu_does_not_wait_for_a_search(run: Run, answers: dict[str, Any]) -> None:
    answers["mtu"] = {**mtu(("n2", None, None, None)), "searching": True}
    status, text = run("mtu")
    assert (status, "n2    192.0.2.2  -      -     1500    is being searched" in text) == (0, True)
    answers["mtu"] = {**mtu(("n2", None, None, None), ("n3", 1400, 1400, False))}
    answers["mtu"]["searching"] = True
    assert run("mtu")[0] == 1


def test_mtu_says_what_to_do(run: Run, answers: dict[str, Any]) -> None:
    answers["mtu"] = mtu(("n2", 1500, 1500, True))
    assert run("mtu")[0] == 0
    answers["mtu"] = mtu(
        ("n2", 1500, 1500, True), ("n3", 1500, 1400, False), ("n4", None, None, None)
    )
    status, text = run("mtu")
    assert status == 1
    lines = text.splitlines()
    assert lines[1].endswith("fits")
    assert lines[2].endswith("too small: set Backend.MTU 1350, or start overlayd with --pmtu-clamp")
    assert lines[3].endswith("no answer: is UDP --probe-port open on both nodes?")


def test_answer_of_another_shape_is_named(run: Run, answers: dict[str, Any]) -> None:
    answers["mesh"] = {"node": "n1", "error": None, "peers": [], "links": [{}]}
    status, text = run("mesh")
    assert status == 3
    assert "links.0" in text


def test_port_of_another_node_must_be_one(run: Run) -> None:
    status, text = run("mesh", "--at", "n2", "--at-port", "x")
    assert (status, "--at-port 'x'" in text) == (2, True)
