"""The agent's socket: whatever comes is answered in time, and leaves nothing behind.

The real service behind the real socket, in a namespace of its own.
"""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from overlay.agent.cni_wire import MAGIC
from overlay.agent.control import ControlServer
from tests.kernel.netns import MakeNetns, Netns
from tests.kernel.test_cni_teardown import Node
from tests.unit import odd

pytestmark = pytest.mark.kernel

_REQUEST: Final = struct.Struct("<4sIII")
_ANSWER: Final = struct.Struct("<4sII")
_DEADLINE_S: Final = 30.0
CONFIG: Final = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay", "mode": "ptp"}
NAMES: Final = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")


class Site:
    """A service that listens, its pod, and a client that has connected and says nothing."""

    def __init__(self, node: Node, pod: Netns, path: Path) -> None:
        self.node, self.pod, self.path = node, pod, path
        answer = node.service.answer
        self.server = node.netns.call(lambda: ControlServer(path, {}, answer))
        self.silent = [self.connect(), self.connect()]
        self.silent_since = time.monotonic()
        self.silent[1].sendall(_REQUEST.pack(MAGIC, 0, 100, 100)[:7])

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(_DEADLINE_S)
        client.connect(str(self.path))
        return client

    def send(self, data: bytes, descriptors: tuple[int, ...] = ()) -> bytes:
        """Return all that is answered to ``data``, whether all of that was taken or not."""
        with self.connect() as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if descriptors and data:
                    socket.send_fds(client, [data[:65536]], descriptors)
                    data = data[65536:]
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            return received(client)

    def close(self) -> None:
        for client in self.silent:
            client.close()
        self.server.close()


def received(client: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):  # what it did not want to read
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def request(variables: dict[str, str], text: bytes, flags: int = 0) -> bytes:
    block = b"".join(f"{k}={v}\0".encode(errors="surrogateescape") for k, v in variables.items())
    return _REQUEST.pack(MAGIC, flags, len(block), len(text)) + block + text


def error_of(answer: bytes) -> dict[str, Any]:
    """Return the error that is answered, once its form is right."""
    magic, status, length = _ANSWER.unpack_from(answer)
    assert (magic, status, length) == (MAGIC, 1, len(answer) - _ANSWER.size)
    error: dict[str, Any] = json.loads(answer[_ANSWER.size :])
    assert error["cniVersion"]
    assert error["msg"]
    return error


@pytest.fixture(scope="module")
def site(make_module_netns: MakeNetns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("socket")
    node = Node(make_module_netns(), place / "attachments")
    made = Site(node, make_module_netns(), place / "cni.sock")
    yield made
    made.close()


variables = st.dictionaries(
    st.sampled_from(NAMES),
    st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "c1", "eth0", "/run/netns/x", "../x"])
    | st.text(max_size=20).filter(lambda text: "\0" not in text),
    max_size=6,
)
configs = st.one_of(
    st.just(CONFIG),
    st.dictionaries(
        st.sampled_from(
            ["mode", "mtu", "ipam", "args", "runtimeConfig", "prevResult", "name", "labels"]
        ),
        odd.anything,
        max_size=3,
    ).map(lambda more: {**CONFIG, **more}),
)
whole = st.builds(
    request,
    variables,
    st.one_of(configs.map(odd.dumped), st.binary(max_size=200)),
    st.integers(0, 15),
)
ADD: Final = dict(zip(NAMES, ("ADD", "c1", "/run/netns/x", "eth0", "", ""), strict=True))


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.one_of(whole, odd.damaged(request(ADD, json.dumps(CONFIG).encode(), 1)), st.binary()),
    kinds=st.lists(st.sampled_from(["pod", "null", "socket"]), max_size=6),
)
@example(data=request(ADD, json.dumps(CONFIG).encode(), 1), kinds=["pod"])
@example(data=request(ADD, json.dumps(CONFIG).encode(), 7), kinds=["pod", "null", "pod"])
@example(data=request(ADD, json.dumps(CONFIG).encode(), 1), kinds=["socket"])
def test_anything_is_answered(site: Site, data: bytes, kinds: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        files = {
            "pod": stack.enter_context(site.pod.path.open("rb")).fileno(),
            "null": stack.enter_context(Path("/dev/null").open("rb")).fileno(),
            "socket": stack.enter_context(socket.socket()).fileno(),
        }
        answer = site.send(data, tuple(files[kind] for kind in kinds))
    if answer.startswith(MAGIC) and answer[4:8] == b"\0" * 4:
        length = _ANSWER.unpack_from(answer)[2]
        assert length == len(answer) - _ANSWER.size
        assert not length or json.loads(answer[_ANSWER.size :])
    elif data[:1] == MAGIC[:1]:
        assert error_of(answer)["code"] in {1, 3, 4, 5, 6, 7, 11, 50, 51, 100, 101, 102, 103}
    else:
        assert json.loads(answer)["ok"] is False
    release = site.node.service.calls()["ipam-release"]
    for each in site.node.attachments.list():
        site.node.netns.call(partial(release, {"container": each.key.container}))
    assert site.node.links() in ([], ["opod-bridge"])
    assert len(list(Path("/proc/self/fd").iterdir())) < 150, "descriptors are closed again"


@pytest.mark.parametrize("start", [MAGIC, b"OVL9", b"{", b"\0"])
def test_ten_megabytes_are_not_read(site: Site, start: bytes) -> None:
    before = time.monotonic()
    answer = site.send(start + bytes(10 << 20))
    assert time.monotonic() - before < _DEADLINE_S
    if start[:1] == MAGIC[:1]:
        assert error_of(answer)["code"] in {4, 5}, "zeros are an empty request"
    else:
        assert json.loads(answer)["error"]["code"] == "bad-request"


def test_input_of_ten_megabytes_is_refused_by_its_announcement(site: Site) -> None:
    header = _REQUEST.pack(MAGIC, 0, 0, 10 << 20)
    assert error_of(site.send(header + b" " * (10 << 20)))["code"] == 5


def test_client_that_says_nothing_is_answered_in_the_end(site: Site) -> None:
    """They are waited for since this module began, for 10 seconds."""
    for client in site.silent:
        error = error_of(received(client))
        assert (error["code"], error["msg"]) == (5, "no request came within 10 s")
    assert site.node.ask("STATUS") == (0, None), "and others are served meanwhile"
