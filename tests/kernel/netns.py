"""Network namespaces for tests: made, entered, wired together, and gone afterwards.

Nothing is ever made in the host's own namespace; ``host_state`` lets a test
assert so. A namespace is entered by a thread, since ``setns`` is a thread's.
"""

import contextlib
import ctypes
import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SYSCTLS: Final = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/accept_ra",
)


class Netns:
    """One network namespace with a random name, ``lo`` up."""

    def __init__(self) -> None:
        self.name = f"ovt-{secrets.token_hex(4)}"
        self.path = Path("/run/netns") / self.name
        _run(["ip", "netns", "add", self.name])
        self.ip("link", "set", "lo", "up")

    def close(self) -> None:
        """Remove the namespace and all in it. Repeating it is safe."""
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)

    def run(self, *argv: str, stdin: str | None = None, check: bool = True) -> str:
        """Run a program inside and return its standard output.

        Raises AssertionError with the program's words when it fails and
        ``check`` is set. ``/sys`` stays the host's, ``/proc/sys/net`` is the
        namespace's own.
        """
        return _run(["nsenter", f"--net={self.path}", *argv], stdin=stdin, check=check)

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program inside; the caller ends it."""
        return subprocess.Popen(["nsenter", f"--net={self.path}", *argv])

    def ip(self, *argv: str) -> str:
        """Run ``ip -n NAME ...`` and return its standard output."""
        return _run(["ip", "-n", self.name, *argv])

    def ip_json(self, *argv: str) -> Any:
        """Run ``ip -n NAME -json -details ...`` and return what it printed, parsed."""
        return json.loads(_run(["ip", "-n", self.name, "-j", "-d", *argv]) or "[]")

    def nft(self, *argv: str, stdin: str | None = None, check: bool = True) -> str:
        """Run ``nft ...`` inside and return its standard output."""
        return self.run("nft", *argv, stdin=stdin, check=check)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Return, or set first, a value below ``/proc/sys``; ``name`` has slashes."""
        path = Path("/proc/sys") / name

        def access() -> str:
            if value is not None:
                path.write_text(f"{value}\n")
            return path.read_text().strip()

        return self.call(access)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket that lives in the namespace, for any thread to use."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def call(self, function: Callable[[], T]) -> T:
        """Return what ``function`` returns inside the namespace, in a thread of its own.

        Child processes that it starts are inside as well. Its exceptions come
        out here.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def body() -> None:
            try:
                descriptor = os.open(self.path, os.O_RDONLY)
                try:
                    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns", str(self.path))
                finally:
                    os.close(descriptor)
                results.append(function())
            except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
                errors.append(exc)

        thread = threading.Thread(target=body, name=f"in-{self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


MakeNetns: TypeAlias = Callable[[], Netns]  # what the fixture make_netns gives


def veth(a: Netns, name_a: str, b: Netns, name_b: str) -> None:
    """Wire two namespaces with a veth pair, both ends up; it never passes through the host's.

    The ends detect no duplicate IPv6 addresses: all are fit for use at once.
    """
    a.ip("link", "add", name_a, "type", "veth", "peer", "name", name_b, "netns", b.name)
    for netns, name in ((a, name_a), (b, name_b)):
        netns.sysctl(f"net/ipv6/conf/{name}/accept_dad", 0)
        netns.ip("link", "set", name, "up")


def eventually(
    condition: Callable[[], T], *, timeout_s: float = 5.0, what: str = "the condition"
) -> T:
    """Return the first true value of ``condition``; AssertionError when none comes in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            msg = f"{what} was not met within {timeout_s} s; last value {value!r}"
            raise AssertionError(msg)
        time.sleep(0.01)  # the step of polling, not a wait for something to have happened


def host_state() -> dict[str, str]:
    """Return what tests must leave alone in the host's own namespace, as text by subject."""
    state = {
        "links": "\n".join(sorted(path.name for path in Path("/sys/class/net").iterdir())),
        "addresses": _without_lifetimes(_run(["ip", "-o", "addr", "show"])),
        "ruleset": _run(["nft", "--stateless", "list", "ruleset"]),
        "legacy iptables": _legacy_tables(),
    }
    for family in ("-4", "-6"):
        state[f"routes {family}"] = _run(["ip", family, "route", "show", "table", "all"])
        state[f"rules {family}"] = _run(["ip", family, "rule", "show"])
    state.update({name: (Path("/proc/sys") / name).read_text() for name in _SYSCTLS})
    return state


@contextlib.contextmanager
def host_unchanged() -> Iterator[None]:
    """Assert that the host's own namespace is afterwards as it was before."""
    before = host_state()
    yield
    after = host_state()
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed, f"the host's own namespace changed: {changed}"


def _without_lifetimes(text: str) -> str:
    return "\n".join(line.split("\\", 1)[0].rstrip() for line in text.splitlines())


def _legacy_tables() -> str:
    paths = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))
    return "".join(path.read_text() for path in paths if path.exists())


def _run(argv: list[str], *, stdin: str | None = None, check: bool = True) -> str:
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    if check and done.returncode != 0:
        msg = f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()}"
        raise AssertionError(msg)
    return done.stdout


class PodLine:
    """A pod, its node and the outside in a row, IPv4 and IPv6, the node forwarding.

    The outside also answers for a peer node (``.2``), for a network that is
    routed to it (``KEEP``) and, behind the node's device ``overlay.1``, for a
    pod of another node. It routes the pod's subnet to the node.
    """

    POD: Final = {4: "10.244.1.2", 6: "fd00:1:0:1::2"}
    NODE: Final = {4: "192.0.2.1", 6: "2001:db8:0:2::1"}
    PEER: Final = {4: "192.0.2.2", 6: "2001:db8:0:2::2"}
    OUTSIDE: Final = {4: "192.0.2.9", 6: "2001:db8:0:2::9"}
    KEEP: Final = {4: "198.51.100.9", 6: "2001:db8:9::9"}
    REMOTE_POD: Final = {4: "10.244.2.2", 6: "fd00:1:0:2::2"}

    def __init__(self, make: MakeNetns) -> None:
        self.pod, self.node, self.outside = make(), make(), make()
        veth(self.node, "opod1", self.pod, "eth0")
        veth(self.node, "up0", self.outside, "eth0")
        veth(self.node, "overlay.1", self.outside, "inner")
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.node.sysctl(name, 1)
        self._address(self.node, "opod1", "10.244.1.1/24", "fd00:1:0:1::1/64")
        self._address(self.pod, "eth0", "10.244.1.2/24", "fd00:1:0:1::2/64")
        self.pod.ip("route", "add", "default", "via", "10.244.1.1")
        self.pod.ip("route", "add", "default", "via", "fd00:1:0:1::1")
        self._address(self.node, "up0", "192.0.2.1/24", "2001:db8:0:2::1/64")
        for host in ("9", "2"):
            self._address(self.outside, "eth0", f"192.0.2.{host}/24", f"2001:db8:0:2::{host}/64")
        self._address(self.outside, "lo", "198.51.100.9/32", "2001:db8:9::9/128")
        self.node.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.9")
        self.node.ip("route", "add", "2001:db8:9::/64", "via", "2001:db8:0:2::9")
        self.outside.ip("route", "add", "10.244.1.0/24", "via", "192.0.2.1")
        self.outside.ip("route", "add", "fd00:1:0:1::/64", "via", "2001:db8:0:2::1")
        self._address(self.node, "overlay.1", "10.244.2.1/24", "fd00:1:0:2::1/64")
        self._address(self.outside, "inner", "10.244.2.2/24", "fd00:1:0:2::2/64")
        self._answer_through_the_tunnel()

    def _answer_through_the_tunnel(self) -> None:
        """Let the remote pod's address leave by its own device, as on a node of its own."""
        for version, source, gateway in (
            ("-4", "10.244.2.2", "10.244.2.1"),
            ("-6", "fd00:1:0:2::2", "fd00:1:0:2::1"),
        ):
            self.outside.ip(version, "rule", "add", "from", source, "lookup", "77")
            self.outside.ip(version, "route", "add", "default", "via", gateway, "table", "77")

    @staticmethod
    def _address(netns: Netns, device: str, v4: str, v6: str) -> None:
        netns.ip("addr", "add", v4, "dev", device)
        netns.ip("addr", "add", v6, "dev", device)
