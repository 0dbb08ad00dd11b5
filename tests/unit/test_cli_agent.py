"""``status``, ``peers`` and ``diff`` against a socket that speaks the agent's protocol, or not."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from overlay.cli import control
from overlay.cli.main import main

STATUS: dict[str, Any] = {
    "node": {"id": "id-1", "name": "n1"},
    "version": "0.1.0",
    "phase": "running",
    "reasons": [],
    "subnet": "10.244.1.0/24",
    "mtu": 1450,
    "backend": "vxlan",
    "egress": "island",
    "underlay": {"device": "eth0", "mtu": 1500, "addresses": ["192.0.2.1"]},
    "store": {"connected": True, "error": None, "revision": 12},
    "peers": 2,
    "stranded": [],
    "problems": [],
    "uptime_s": 61.2,
}
PEER = {
    "subnet": "10.244.2.0/24",
    "node": "n2",
    "public": ["192.0.2.2"],
    "backend": "vxlan",
    "mac": "02:00:00:00:00:02",
    "flannel": True,
    "since": None,
}

Serve = Callable[[bytes], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that answers one client with some bytes."""
    with ExitStack() as stack:

        def start(answer: bytes) -> Path:
            path = tmp_path / "agent.sock"
            server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            server.bind(str(path))
            server.listen(1)

            def accept() -> None:
                client, _ = server.accept()
                with client:
                    client.recv(4096)
                    client.sendall(answer)

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            stack.callback(thread.join, 5)
            return path

        yield start


def ok(result: object) -> bytes:
    return json.dumps({"overlay": 1, "ok": True, "result": result}).encode() + b"\n"


def test_status_for_people(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--socket", str(serve(ok(STATUS)))], environment={}) == 0
    assert capsys.readouterr().out == (
        "node      n1\n"
        "id        id-1\n"
        "version   0.1.0\n"
        "phase     running\n"
        "subnet    10.244.1.0/24\n"
        "backend   vxlan\n"
        "egress    island\n"
        "mtu       1450\n"
        "underlay  eth0 192.0.2.1\n"
        "store     connected, revision 12\n"
        "peers     2\n"
        "uptime    61 s\n"
    )


def test_status_for_programs_is_the_agents_own(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"OVERLAYCTL_SOCKET": str(serve(ok(STATUS)))}
    assert main(["status", "-o", "json"], environment=environment) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"reasons": ["waiting for a network config"]}, "waiting for", id="not ready"),
        pytest.param({"problems": [{"about": "10.244.9.0-24", "text": "bad"}]}, "bad", id="peer"),
        pytest.param(
            {"store": {"connected": False, "error": "refused", "revision": 0}}, "refused", id="away"
        ),
        pytest.param(
            {"stranded": [{}], "problems": [{"about": "pod", "text": "cut off"}]},
            "1 of this node's pods",
            id="stranded pods",
        ),
        pytest.param({"underlay": None, "reasons": ["claiming"]}, "underlay", id="no underlay"),
    ],
)
def test_status_is_a_finding_when_something_needs_a_look(
    serve: Serve, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    path = serve(ok({**STATUS, **change}))
    assert main(["status", "--socket", str(path)], environment={}) == 1
    assert said in capsys.readouterr().out


def test_peers(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peers", "--socket", str(serve(ok({"peers": [PEER]})))], environment={}) == 0
    assert capsys.readouterr().out == (
        "SUBNET         NODE  PUBLIC     BACKEND  MAC                FLANNEL\n"
        "10.244.2.0/24  n2    192.0.2.2  vxlan    02:00:00:00:00:02  yes\n"
    )


def test_peers_that_are_held(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    held = {"peers": [{**PEER, "held": True}], "held": {"peers": 1, "seconds_left": 12.0}}
    assert main(["peers", "--socket", str(serve(ok(held)))], environment={}) == 0
    assert capsys.readouterr().out == (
        "SUBNET         NODE  PUBLIC     BACKEND  MAC                FLANNEL  HELD\n"
        "10.244.2.0/24  n2    192.0.2.2  vxlan    02:00:00:00:00:02  yes      yes\n"
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [("prune", "let go  12 peers\n"), ("keep", "kept until they come back  12 peers\n")],
)
def test_word_about_held_peers(
    serve: Serve, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    path = serve(ok({"answer": word, "peers": 12}))
    assert main(["peers", word, "--socket", str(path)], environment={}) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("ops", "status", "said"),
    [
        pytest.param([], 0, "in step\n", id="in step"),
        pytest.param(
            ["set route 10.244.2.0/24 dev x"], 1, "set route 10.244.2.0/24 dev x\n", id="not"
        ),
    ],
)
def test_diff_is_a_finding_unless_empty(
    serve: Serve, capsys: pytest.CaptureFixture[str], ops: list[str], status: int, said: str
) -> None:
    assert main(["diff", "--socket", str(serve(ok({"ops": ops})))], environment={}) == status
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        pytest.param(b"", 3, "not overlayd's", id="nothing"),
        pytest.param(b"HTTP/1.1 400\r\n\r\n", 3, "not overlayd's", id="another protocol"),
        pytest.param(b'{"overlay":2}\n', 3, "one version", id="another version"),
        pytest.param(
            b'{"overlay":1,"ok":false,"error":{"code":"failed","message":"no lease"}}\n',
            1,
            "refused: no lease",
            id="refused",
        ),
        pytest.param(b'{"overlay":1,"ok":false}\n', 1, "no reason given", id="refused in silence"),
    ],
)
def test_bad_answers_get_one_line(
    serve: Serve, capsys: pytest.CaptureFixture[str], answer: bytes, status: int, said: str
) -> None:
    assert main(["status", "--socket", str(serve(answer))], environment={}) == status
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_agent_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(1)
        with pytest.raises(control.AgentUnreachableError, match="no answer within"):
            control.call(path, "status", timeout_s=0.05)
