"""Beside a node-local DNS cache: a link-local address on the node, and no connection tracking.

The rules are those that it makes (kubernetes/dns, cmd/node-cache/app: raw and
filter, for 169.254.20.10). Its address lies on ``lo`` here, as this kernel may
lack the kind ``dummy``; to a pod's packet that is the same.
"""

import contextlib
import functools
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.agents import BIN
from tests.e2e.hub import Hub, HubNode
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

CACHE: Final = "169.254.20.10"
PORT: Final = 53
ASK_S: Final = 1.0
LATE_S: Final = 20.0
KINDS: Final = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}


def config(mode: str) -> str:
    return json.dumps(
        {
            "Network": "10.244.0.0/16",
            "Backend": {"Type": "vxlan"},
            "Egress": {"Mode": mode},
        }
    )


@pytest.fixture(params=["island", "isolated", "flat"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HubNode]:
    """Return a node with an agent and the cache."""
    with host_unchanged(), contextlib.ExitStack() as stack:
        hub = Hub(tmp_path)
        stack.callback(hub.close)
        hub.begin(config(request.param))
        here = hub.node(1)
        _be_cached(here.netns, stack)
        here.start().wait_ready()
        yield here


def _be_cached(netns: Netns, stack: contextlib.ExitStack) -> None:
    """Give the node the address, the rules and somebody who answers."""
    netns.ip("addr", "add", f"{CACHE}/32", "dev", "lo")
    for protocol in KINDS:
        to, back = (f"-p {protocol} -{way} {CACHE} --{port} {PORT}" for way, port in _WAYS)
        for table, chain, match, target in (
            ("raw", "PREROUTING", to, "NOTRACK"),
            ("filter", "INPUT", to, "ACCEPT"),
            ("raw", "OUTPUT", back, "NOTRACK"),
            ("filter", "OUTPUT", back, "ACCEPT"),
            ("raw", "OUTPUT", to, "NOTRACK"),
        ):
            netns.run("iptables", "-w", "-t", table, "-A", chain, *match.split(), "-j", target)
    for kind in KINDS.values():
        sock = netns.call(functools.partial(_bound, kind))
        stack.callback(sock.close)
        answer = _answer_stream if kind is socket.SOCK_STREAM else _answer_datagrams
        threading.Thread(target=answer, args=(sock,), daemon=True).start()


_WAYS: Final = (("d", "dport"), ("s", "sport"))


def _bound(kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((CACHE, PORT))
    if kind is socket.SOCK_STREAM:
        sock.listen(64)
    return sock


def _answer_datagrams(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, source = sock.recvfrom(512)
            sock.sendto(data, source)


def _answer_stream(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = sock.accept()
            with connection:
                connection.sendall(connection.recv(512))


def asks(pod: Netns, protocol: str) -> bool:
    """Return whether the cache answers a pod."""
    with pod.call(lambda: socket.socket(socket.AF_INET, KINDS[protocol])) as sock:
        sock.settimeout(ASK_S)
        try:
            sock.connect((CACHE, PORT))
            sock.send(b"who?")
            return sock.recv(512) == b"who?"
        except OSError:
            return False


def answers(pod: Netns) -> set[str]:
    return {protocol for protocol in KINDS if asks(pod, protocol)}


def apply(node: HubNode, spec: dict[str, Any]) -> None:
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "out", "namespace": "shop"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], **spec},
    }
    command = [
        str(BIN / "overlayctl"),
        f"--etcd-endpoints={node.hub.etcd.endpoint}",
        *("policy", "apply", "-f", "-"),
    ]
    done = node.netns.call(
        lambda: subprocess.run(
            command, input=json.dumps(document), capture_output=True, text=True, check=False
        )
    )
    assert done.returncode == 0, done.stderr


def test_pods_are_answered_and_policies_say_who(node: HubNode) -> None:
    pod, _ = node.add_pod("client")
    assert answers(pod) == set(KINDS)
    apply(node, {"egress": []})
    eventually(lambda: answers(pod) == set(), timeout_s=LATE_S, what="no answer is left")
    ports = [{"port": PORT, "protocol": "UDP"}]
    apply(node, {"egress": [{"to": [{"ipBlock": {"cidr": f"{CACHE}/32"}}], "ports": ports}]})
    eventually(lambda: answers(pod) == {"udp"}, timeout_s=LATE_S, what="UDP alone is answered")
