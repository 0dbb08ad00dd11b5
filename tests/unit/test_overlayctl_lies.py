"""``overlayctl`` against an agent that lies: one line and a status of its own, no traceback."""

import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overlay.cli import shapes
from overlay.cli.main import main
from tests.unit import odd

ATTACHED = {
    "format": 1,
    "network": "fabric",
    "container": "c1",
    "interface": "eth0",
    "sandbox": "/run/netns/x",
    "addresses": ["10.1.0.2"],
    "link": "opod1",
    "mac": None,
    "mtu": 1450,
    "arguments": {"K8S_POD_NAME": "web"},
    "complete": True,
    "live": True,
}
TRUTH: dict[str, dict[str, Any]] = {
    "status": {
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
        "problems": [{"about": "10.244.9.0-24", "text": "bad"}],
        "uptime_s": 61.2,
    },
    "peers": {
        "peers": [
            {
                "subnet": "10.244.2.0/24",
                "node": "n2",
                "public": ["192.0.2.2"],
                "backend": "vxlan",
                "mac": "02:00:00:00:00:02",
                "flannel": True,
                "since": None,
            }
        ]
    },
    "diff": {"ops": ["set route 10.244.2.0/24 dev x"]},
    "ipam list": {
        "attachments": [ATTACHED],
        "strays": ["opod9"],
        "ranges": [{"network": "10.1.0.0/24", "used": 1, "count": 253}],
    },
    "ipam check": {"attachments": [{**ATTACHED, "live": False}], "strays": [], "ranges": []},
    "ipam release c1": {"released": [ATTACHED], "links": []},
}


@contextmanager
def agent(answer: bytes) -> Iterator[Path]:
    """Answer one client with ``answer`` and hang up."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server,
    ):
        path = Path(folder) / "agent.sock"
        server.bind(str(path))
        server.listen(1)

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        thread.join(5)


def told(command: str, answer: bytes, form: str = "table") -> tuple[int, str, str]:
    """Return status, standard output and standard error of ``overlayctl``."""
    out, err = StringIO(), StringIO()
    with agent(answer) as path, redirect_stdout(out), redirect_stderr(err):
        argv = [*command.split(), "--socket", str(path), "-o", form]
        status = main(argv, environment={})
    return status, out.getvalue(), err.getvalue()


def ok(result: Any) -> bytes:
    return odd.dumped({"overlay": 1, "ok": True, "result": result}) + b"\n"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in a document."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], lie: Any) -> Any:
    """Return ``value`` with ``lie`` at ``path``."""
    if not path:
        return lie
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], lie)
    return copy


def judge(command: str, answer: bytes, form: str) -> None:
    status, out, err = told(command, answer, form)
    assert status in {0, 1, 3}, err
    if status == 3:
        assert not out
        assert err.count("\n") == 1
        assert len(err) < 1000
    elif form == "json" and out:
        json.loads(out, parse_constant=pytest.fail)
    assert "Traceback" not in err
    assert all(c == "\n" or c.isprintable() for c in out) or form != "table"


@pytest.mark.parametrize("command", TRUTH)
@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_truth_is_shown(command: str, form: str) -> None:
    status, out, err = told(command, ok(TRUTH[command]), form)
    assert (status in {0, 1}, err) == (True, "")
    assert out


commands = st.sampled_from(sorted(TRUTH))
forms = st.sampled_from(["table", "json", "yaml"])


@settings(deadline=None)
@given(st.data(), commands, forms, odd.anything)
def test_one_lie_is_named_or_shown(data: st.DataObject, command: str, form: str, lie: Any) -> None:
    truth = TRUTH[command]
    path = data.draw(st.sampled_from(list(places(truth))))
    judge(command, ok(replaced(truth, path, lie)), form)


@settings(deadline=None)
@given(st.data(), commands, forms)
@example(None, "status", "table")
def test_damaged_answer_is_named_or_shown(data: Any, command: str, form: str) -> None:
    answer = b"\xff\n" if data is None else data.draw(odd.damaged(ok(TRUTH[command])))
    judge(command, answer, form)


@pytest.mark.parametrize(
    ("command", "path", "lie", "named"),
    [
        ("status", ("node",), [], "node"),
        ("status", ("node", "name"), {}, "node.name"),
        ("status", ("uptime_s",), "long", "uptime_s"),
        ("status", ("peers",), True, "peers"),
        ("status", ("problems", 0, "about"), None, "problems.0.about"),
        ("status", ("store", "connected"), 1, "store.connected"),
        ("status", ("underlay", "addresses"), [1], "underlay.addresses.0"),
        ("peers", ("peers", 0), "n2", "peers.0"),
        ("peers", ("peers", 0, "public"), None, "peers.0.public"),
        ("diff", ("ops",), "set", "ops"),
        ("ipam list", ("attachments", 0, "container"), 5, "attachments.0.container"),
        ("ipam list", ("ranges", 0, "used"), "1", "ranges.0.used"),
        ("ipam check", ("strays",), [[]], "strays.0"),
        ("ipam release c1", ("released",), {}, "released"),
    ],
)
def test_the_place_of_a_lie_is_named(
    command: str, path: tuple[Any, ...], lie: Any, named: str
) -> None:
    status, out, err = told(command, ok(replaced(TRUTH[command], path, lie)))
    assert (status, out) == (3, "")
    assert f" has no {named} that can be shown; do both programs have one version?" in err


def test_what_a_newer_agent_says_besides_is_welcome() -> None:
    assert shapes.misfit({**TRUTH["status"], "more": {"x": 1}}, shapes.STATUS) is None


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("status", ("node", "name")),
        ("peers", ("peers", 0, "node")),
        ("diff", ("ops", 0)),
        ("ipam list", ("attachments", 0, "link")),
        ("ipam list", ("ranges", 0, "network")),
        ("ipam check", ("attachments", 0, "container")),
        ("ipam release c1", ("released", 0, "interface")),
    ],
)
def test_what_could_steer_a_terminal_is_shown(command: str, path: tuple[Any, ...]) -> None:
    lie = "\x1b[2J\nforged \ud800"
    _, out, err = told(command, ok(replaced(TRUTH[command], path, lie)))
    assert err == ""
    assert "^[[2J^Jforged" in out
    assert "\x1b" not in out
    assert out.encode()


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_half_a_surrogate_pair_is_escaped(form: str) -> None:
    lie = replaced(TRUTH["status"], ("node", "name"), "n\ud800")
    _, out, err = told(f"-o {form} status", ok(lie))
    assert err == ""
    assert "\\ud800" in out.lower()
    assert out.encode()
