"""The agent's socket: requests that come in pieces, and clients that are not root."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from overlay.agent.cni_wire import MAGIC
from tests.e2e.test_cni import Node, addresses, host_links, running_node
from tests.kernel.netns import Netns

pytestmark = pytest.mark.e2e

NOBODY: Final = 65534
_REQUEST: Final = struct.Struct("<4sIII")
# Run as another user: prints what the socket answers to what stands on standard input.
CLIENT: Final = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(20)
    try:
        client.connect(sys.argv[1])
    except PermissionError:
        sys.exit("refused")
    client.sendall(sys.stdin.buffer.read())
    sys.stdout.buffer.write(b"".join(iter(lambda: client.recv(65536), b"")))
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(
        tmp_path_factory.mktemp("socket"), "--reserve-addresses=10.244.0.0/16,fd00:1::/48"
    ) as here:
        yield here


def request(node: Node, pod: Netns, command: str = "DEL") -> bytes:
    """Return the bytes of a request that gives no answer but an empty one when it is taken."""
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "pieces",
        "CNI_NETNS": str(pod.path),
        "CNI_IFNAME": "eth0",
    }
    block = b"".join(f"{name}={value}\0".encode() for name, value in variables.items())
    text = b'{"cniVersion": "1.1.0", "name": "fabric", "type": "overlay", "mode": "ptp"}'
    return _REQUEST.pack(MAGIC, 1, len(block), len(text)) + block + text


@pytest.mark.parametrize("first", [1, 3, 4, 15, 16, 17, 60])
def test_request_in_pieces_is_one_request(node: Node, first: int) -> None:
    """The descriptor rides on the first byte, however much of the rest comes with it."""
    pod = node.pod()
    data = request(node, pod, "STATUS" if first == 3 else "ADD")
    descriptor = os.open(pod.path, os.O_RDONLY | os.O_CLOEXEC)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(node.socket)
        client.sendmsg([data[:first]], rights)
        os.close(descriptor)
        for place in range(first, len(data)):
            client.send(data[place : place + 1])
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer[:4] == MAGIC
    assert b"addresses that may be given here" in answer, "all is reserved on this node"
    assert "eth0" not in pod.ip("link")


@pytest.mark.parametrize("kept", [0, 1, 10, 20, -1])
def test_request_that_ends_early_does_nothing(node: Node, kept: int) -> None:
    pod = node.pod()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(node.socket)
        client.sendall(request(node, pod)[:kept])
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b'"code":5' in answer or b"bad-request" in answer
    assert node.cni("STATUS")[0] == 1


def as_nobody(path: Path, sent: bytes) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-ISc", CLIENT, str(path)],
        input=sent,
        capture_output=True,
        check=False,
        timeout=60,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )


def test_client_that_is_not_root_cannot_connect(node: Node) -> None:
    done = as_nobody(Path(node.socket), b"")
    assert (done.returncode, done.stderr) == (1, b"refused\n")


def test_client_that_is_not_root_is_refused_where_the_socket_lets_it_in(node: Node) -> None:
    """Modes can be changed by an operator; what the kernel says of the peer cannot."""
    path = Path(node.socket)
    modes = {each: each.stat().st_mode & 0o7777 for each in (path, *path.parents[:-1])}
    assert modes[path] == 0o600
    try:
        for each, mode in modes.items():
            each.chmod(mode | (0o666 if each == path else 0o711))
        refused = as_nobody(path, request(node, node.pod()))
        assert b'"code":5' in refused.stdout
        assert b"only root may attach pods" in refused.stdout
        refused = as_nobody(path, b'{"overlay": 1, "call": "status"}\n')
        assert b'"code": "forbidden"' in refused.stdout
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


def test_reserved_addresses_are_given_by_name_alone(node: Node) -> None:
    pod = node.pod()
    status, error = node.cni("ADD", "any", str(pod.path))
    assert (status, error["code"]) == (1, 101)
    assert "all 0 addresses that may be given here (of 253) are in use" in error["msg"]
    subnets = networks_of(node)
    wanted = [network.replace("0/24", "77").replace("::/64", "::77") for network in subnets]
    result = node.add("named", pod, runtimeConfig={"ips": wanted})
    assert addresses(result) == wanted
    assert node.cni("DEL", "named") == (0, None)


def networks_of(node: Node) -> list[str]:
    text = node.world.overlayctl("ipam", "list", "-o", "json")
    return [span["network"] for span in json.loads(text)["ranges"]]


def test_link_that_nobody_knows_is_shown_and_removed_when_asked(node: Node) -> None:
    pod, host = node.pod(), node.world.node
    subnets = networks_of(node)
    wanted = [network.replace("0/24", "78").replace("::/64", "::78") for network in subnets]
    node.add("known", pod, runtimeConfig={"ips": wanted})
    (known,) = host_links(node)
    host.ip("link", "add", "opod00000000000", "type", "veth", "peer", "name", "stray")
    found = node.world.overlayctl("ipam", "check", check=False)
    assert "opod00000000000: no attachment is known for this link" in found
    assert "ipam release --strays" in found
    assert "removed link opod00000000000" in node.world.overlayctl("ipam", "release", "--strays")
    assert host_links(node) == [known]
    assert "in step" in node.world.overlayctl("ipam", "check")
    told = node.world.overlayctl("ipam", "release", "--strays", check=False)
    assert told == "no link is stray here\n"
    assert node.cni("DEL", "known") == (0, None)
