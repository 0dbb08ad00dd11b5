"""Pods that listen and ask, on a hub of nodes, for tests of network policies."""

import contextlib
import functools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from tests.e2e.agents import BIN
from tests.e2e.hub import PLUGIN, Hub, HubNode
from tests.kernel.netns import Netns

DUAL: Final = (
    '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",'
    ' "IPv6SubnetLen": 64, "Backend": {"Type": "vxlan"}}'
)
PORT: Final = 8080
STREAM: Final = b"send without being asked"
ASK_S: Final = 1.0  # for an answer; what is dropped costs as long
SHOWS_S: Final = 20.0  # until a change must be in force


@dataclass(frozen=True)
class Party:
    """Somebody with an address of each family: a pod, a node, or who lives outside."""

    netns: Netns
    addresses: tuple[str, ...]
    name: str = ""

    def listen(self, stack: contextlib.ExitStack, port: int = PORT) -> "Party":
        """Answer TCP and UDP on ``port`` until the stack ends."""
        for address, kind in ((a, k) for a in self.addresses for k in _KINDS):
            sock = self.netns.call(functools.partial(_bound, address, kind, port))
            stack.callback(sock.close)
            target = _accept if kind is socket.SOCK_STREAM else _echo
            threading.Thread(target=target, args=(sock,), daemon=True).start()
        return self

    def asks(self, other: "Party", version: int, kind: str = "tcp", port: int = PORT) -> bool:
        """Return whether ``other`` answers."""
        address = next(a for a in other.addresses if (":" in a) == (version == 6))
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        type_ = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
        with self.netns.call(lambda: socket.socket(family, type_)) as asking:
            asking.settimeout(ASK_S)
            try:
                asking.connect((address, port))
                asking.send(b"?")
                return asking.recv(16) == b"?"
            except OSError:
                return False


def seen(source: Party, target: Party) -> set[str]:
    """Return the ways on which ``target`` answers: tcp4, tcp6, udp4, udp6."""
    ways = [(kind, version) for kind in ("tcp", "udp") for version in (4, 6)]
    with ThreadPoolExecutor(len(ways)) as pool:
        found = list(pool.map(lambda way: source.asks(target, way[1], way[0]), ways))
    return {
        f"{kind}{version}" for (kind, version), is_open in zip(ways, found, strict=True) if is_open
    }


ALL: Final = {"tcp4", "tcp6", "udp4", "udp6"}
TCP: Final = {"tcp4", "tcp6"}


def comes_to(source: Party, target: Party, ways: set[str]) -> None:
    """Wait until ``target`` answers on exactly these ways."""
    deadline = time.monotonic() + SHOWS_S
    while (found := seen(source, target)) != ways:
        text = f"{source.name} reaches {target.name} by {found or 'nothing'}, not {ways}"
        assert time.monotonic() < deadline, text


class Fabric:
    """Three nodes, dual-stack, an etcd, and somebody outside of it all."""

    def __init__(self, place: Path) -> None:
        self.hub = Hub(place)
        self.hub.begin(DUAL)
        self.nodes = [self.hub.node(n) for n in (1, 2, 3)]
        self.outside = Party(self._plug(100), ("192.0.2.100", "2001:db8::100"), "outside")
        for node in self.nodes:
            node.netns.ip("addr", "add", f"2001:db8::{node.number}/64", "dev", "eth0", "nodad")
        self.running = [node.start() for node in self.nodes]
        for agent in self.running:
            agent.wait_ready()

    def _plug(self, number: int) -> Netns:
        netns = self.hub.netns()
        port = f"x{number}"
        self.hub.netns_of_hub.ip(
            *f"link add {port} type veth peer name eth0 netns {netns.name}".split()
        )
        self.hub.netns_of_hub.ip("link", "set", port, "master", "br0", "up")
        netns.ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
        netns.ip("addr", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
        netns.ip("link", "set", "eth0", "up")
        return netns

    def party(self, node: HubNode) -> Party:
        """Return a node as one who asks and answers."""
        number = node.number
        return Party(node.netns, (f"192.0.2.{number}", f"2001:db8::{number}"), f"n{number}")

    def pod(self, node: HubNode, name: str, **config: Any) -> Party:
        """Start a pod ``shop/NAME`` with the real plugin."""
        netns = self.hub.netns()
        status, result = plugin(node, "ADD", name, netns, **config)
        assert status == 0, result
        return Party(netns, tuple(ip["address"].split("/")[0] for ip in result["ips"]), name)

    def end(self, node: HubNode, name: str) -> None:
        """Stop a pod."""
        status, result = plugin(node, "DEL", name, None)
        assert status == 0, result

    def ctl(self, *words: str, text: str = "", ok: tuple[int, ...] = (0,), node: int = 0) -> str:
        """Run ``overlayctl`` on a node; return what it printed."""
        where = self.nodes[node]
        command = [
            str(BIN / "overlayctl"),
            f"--etcd-endpoints={self.hub.etcd.endpoint}",
            f"--socket={where.socket}",
            *words,
        ]
        done = where.netns.call(
            lambda: subprocess.run(
                command, input=text, capture_output=True, text=True, check=False, timeout=60
            )
        )
        assert done.returncode in ok, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def apply(self, name: str, spec: Mapping[str, Any]) -> None:
        """Apply a policy of the namespace ``shop``."""
        document = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": spec,
        }
        self.ctl("policy", "apply", "-f", "-", text=json.dumps(document))

    def delete(self, name: str) -> None:
        """Delete a policy of the namespace ``shop``."""
        self.ctl("policy", "delete", f"shop/{name}")

    def label(self, pod: str, *labels: str) -> None:
        """Label a pod of the namespace ``shop``."""
        self.ctl("pod", "label", f"shop/{pod}", *labels)


def plugin(
    node: HubNode, command: str, name: str, pod: Netns | None, **config: Any
) -> tuple[int, Any]:
    """Execute the plugin for ``shop/NAME``; return its exit status and what it printed."""
    document = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay", **config}
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": str(pod.path) if pod is not None else "",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    request = json.dumps({**document, "socket": node.socket}).encode()
    done = node.netns.call(
        lambda: subprocess.run(
            PLUGIN, input=request, env=environment, capture_output=True, check=False, timeout=60
        )
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None


class Flood:
    """A pod that sends UDP to every address of some subnets, again and again."""

    def __init__(self, source: Party, targets: list[str]) -> None:
        code = (
            "import socket, sys, time\n"
            "v4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "v6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
            "targets = [(v6 if ':' in t else v4, (t, 9)) for t in sys.argv[1:]]\n"
            "while True:\n"
            "    for s, target in targets:\n"
            "        try: s.sendto(b'flood', target)\n"
            "        except OSError: pass\n"
            "    time.sleep(0.0005)\n"
        )
        self._process = source.netns.call(
            lambda: subprocess.Popen([sys.executable, "-ISE", "-c", code, *targets])
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)


class Outpour:
    """A namespace that sends to some addresses without end, from before it has any interface on."""

    def __init__(self, netns: Netns, targets: tuple[str, ...]) -> None:
        kind = socket.SOCK_DGRAM
        self._sockets = {
            target: netns.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, kind)
            for target in targets
        }
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ends.wait(0.0005):
            for target, sock in self._sockets.items():
                with contextlib.suppress(OSError):  # there is no way yet, or no more
                    sock.sendto(b"inside", (target, 9))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()


class Sniffer:
    """What arrives in a namespace from before it has any interface on."""

    def __init__(self, netns: Netns) -> None:
        # By protocol: a socket for all of them would get what the namespace sends, too.
        self._sockets = {
            version: netns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
            for version, protocol in ((4, 0x0800), (6, 0x86DD))
        }
        for sock in self._sockets.values():
            sock.setblocking(False)

    def floods(self, word: bytes = b"flood") -> dict[int, int]:
        """Return how many packets that end in ``word`` came since the last look, by IP version."""
        count = dict.fromkeys(self._sockets, 0)
        for version, sock in self._sockets.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    count[version] += sock.recv(256).endswith(word)
        return count

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()


_KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM)


def _bound(address: str, kind: socket.SocketKind, port: int) -> socket.socket:
    """Return a socket at one address: what answers from it is what was asked."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if kind is socket.SOCK_STREAM:
        sock.listen(64)
    return sock


def _accept(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = sock.accept()
            threading.Thread(target=_serve, args=(client,), daemon=True).start()


def _serve(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        while data := client.recv(64):
            client.sendall(data)
            while data == STREAM:
                client.sendall(b"." * 100)
                time.sleep(0.02)


def _echo(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, peer = sock.recvfrom(64)
            if peer is None:  # shut down
                return
            with contextlib.suppress(OSError):
                sock.sendto(data, peer)


def talks(connection: socket.socket, timeout_s: float = ASK_S) -> bool:
    """Return whether an established connection still carries something both ways."""
    deadline = time.monotonic() + timeout_s
    connection.settimeout(timeout_s)
    try:
        connection.sendall(b"!")
        while time.monotonic() < deadline:
            if connection.recv(16):
                return True
    except OSError:
        pass
    return False


def is_silent(connection: socket.socket, timeout_s: float = ASK_S) -> bool:
    """Return whether nothing comes for a while, what waits already left out."""
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while connection.recv(1 << 16):
            pass
    connection.settimeout(timeout_s)
    try:
        return not connection.recv(16)
    except TimeoutError:
        return True
