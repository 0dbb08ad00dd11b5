"""The node's socket: whatever comes gets one answer in its own protocol, in time."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from overlay.agent.control import ControlServer
from overlay.model.errors import OverlayError
from tests.unit import odd


def echo(given: Any) -> Any:
    return dict(given)


def refuse(given: Any) -> Any:
    msg = "no"
    raise OverlayError(msg)


def stumble(given: Any) -> Any:
    msg = "of our own"
    raise LookupError(msg)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("control") / "agent.sock"
    server = ControlServer(path, {"echo": echo, "refuse": refuse, "stumble": stumble})
    yield path
    server.close()


def ask(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(20)
        client.connect(str(path))
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was answered before all of it was read
        parts = []
        try:
            while part := client.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass  # what it did not want to read is thrown away
        return b"".join(parts)


def answer(path: Path, request: bytes) -> dict[str, Any]:
    line = ask(path, request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    document = json.loads(line, parse_constant=pytest.fail)
    assert isinstance(document, dict)
    assert document["overlay"] == 1
    if not document["ok"]:
        assert set(document["error"]) == {"code", "message"}
    return document


GOOD = b'{"overlay": 1, "call": "echo", "args": {"a": [1, {"b": null}]}}\n'
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@relaxed
@given(odd.damaged(GOOD) | st.binary(max_size=200))
@example(b"")
@example(b"\n")
@example(b"[" * 200_000 + b"\n")
@example(b'"overlay"\n')
@example(b'{"overlay": 1, "call": "echo", "args": {"a": NaN}}\n')
@example(b'{"overlay": 1, "call": ["echo"]}\n')
@example(b"\xff\xfe\n")
def test_any_line_gets_one_line(path: Path, request: bytes) -> None:
    answer(path, request)


@relaxed
@given(odd.anything)
def test_arguments_come_through_or_the_request_is_refused(path: Path, given: Any) -> None:
    request = odd.dumped({"overlay": 1, "call": "echo", "args": {"a": given}}) + b"\n"
    found = answer(path, request)
    if found["ok"]:
        assert found["result"] == {"a": json.loads(odd.dumped(given))}
    else:
        assert found["error"]["code"] == "bad-request"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b'{"overlay": 1, "call": "refuse"}\n', "failed"),
        (b'{"overlay": 1, "call": "stumble"}\n', "fault"),
        (b'{"overlay": 2, "call": "echo"}\n', "bad-version"),
        (b'{"overlay": 1, "call": "reboot"}\n', "bad-call"),
        (b'{"overlay": 1, "call": null}\n', "bad-call"),
        (b'{"overlay": 1}\n', "bad-request"),
        (b"null\n", "bad-request"),
        (b"5\n", "bad-request"),
        (b"[]\n", "bad-request"),
        (b'{"overlay": 1, "call": "echo", "args": ' + b" " * (2 << 20) + b"{}}\n", "bad-request"),
    ],
)
def test_refusal_has_its_code(path: Path, request_: bytes, code: str) -> None:
    assert answer(path, request_)["error"]["code"] == code


def test_arguments_that_are_no_object_count_as_none(path: Path) -> None:
    found = answer(path, b'{"overlay": 1, "call": "echo", "args": [1]}\n')
    assert found["result"] == {}
