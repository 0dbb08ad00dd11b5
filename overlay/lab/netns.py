"""Network namespaces: making them, working inside them, and removing them.

The namespace that the caller stands in is never changed: work inside another
one happens in a thread of its own (``setns`` is a thread's) or in a child.
Sockets stay in the namespace they were opened in, whoever uses them later.
"""

import ctypes
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeVar

from overlay.lab import signals
from overlay.lab.errors import LabError
from overlay.model.address import IPAddress

NETNS_DIR: Final = Path("/run/netns")  # where iproute2 keeps names, ip-netns(8)
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_MOST_THREADS: Final = 32

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


def add(namespaces: Iterable[str]) -> None:
    """Make namespaces: ``ip netns add NAME``, with ``lo`` up in each.

    Raises LabError, also for one that exists already.
    """
    names = list(namespaces)
    ip_batch(None, [f"netns add {name}" for name in names])
    inside_each(names, lambda _: ip_batch(None, ["link set lo up"]))


def delete(namespaces: Iterable[str]) -> None:
    """Remove those of the namespaces that exist; repeating it is safe."""
    there = set(existing())
    doomed = [name for name in namespaces if name in there]
    if doomed:
        ip_batch(None, [f"netns del {name}" for name in doomed])


def existing(prefix: str = "") -> list[str]:
    """Return the names of the namespaces that begin with ``prefix``, sorted."""
    if not NETNS_DIR.is_dir():
        return []
    return sorted(entry.name for entry in NETNS_DIR.iterdir() if entry.name.startswith(prefix))


def ip_batch(namespace: str | None, commands: Sequence[str]) -> None:
    """Run ``ip`` commands in order, all in one process: ``ip -n NAMESPACE -batch -``.

    Stops at the first that fails. Raises LabError with that command and ip's
    own words.
    """
    if not commands:
        return
    where = ["-n", namespace] if namespace is not None else []
    done = subprocess.run(
        ["ip", *where, "-batch", "-"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        msg = f"ip in {namespace or 'this namespace'}: {_failed(done.stderr, commands)}"
        raise LabError(msg)


def inside(namespace: str, work: Callable[[], _T]) -> _T:
    """Return what ``work`` returns in a thread that has entered ``namespace``."""
    with signals.deferred(), ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(_entered, namespace, work).result()


def inside_each(namespaces: Iterable[str], work: Callable[[str], _T]) -> dict[str, _T]:
    """Return ``work(namespace)`` for each, run side by side, each in its namespace."""
    names = list(namespaces)
    if not names:
        return {}
    with (
        signals.deferred(),
        ThreadPoolExecutor(max_workers=min(len(names), _MOST_THREADS)) as pool,
    ):
        # A pooled thread that served another namespace enters this one first.
        futures = {n: pool.submit(_entered, n, lambda n=n: work(n)) for n in names}
        return {name: future.result() for name, future in futures.items()}


def addresses() -> list[IPAddress]:
    """Return the global addresses in the thread's namespace: ``ip -json addr``."""
    shown = subprocess.run(["ip", "-json", "addr"], capture_output=True, check=True).stdout
    return [
        ip_address(entry["local"])
        for link in json.loads(shown)
        for entry in link.get("addr_info", ())
        if entry.get("scope") == "global"
    ]


def write_sysctls(values: Mapping[str, str]) -> None:
    """Write settings below ``/proc/sys/net`` in the thread's namespace.

    Keys are paths, for device names have dots: ``ipv4/conf/overlay.1/rp_filter``.
    """
    for key, value in values.items():
        try:
            Path("/proc/sys/net", key).write_text(value)
        except OSError as exc:
            msg = f"sysctl net/{key} = {value}: {exc.strerror}"
            raise LabError(msg) from exc


def command_prefix(namespace: str) -> list[str]:
    """Return the words that run a command inside ``namespace``."""
    return ["ip", "netns", "exec", namespace]


def processes_in(namespaces: Iterable[str]) -> list[int]:
    """Return the pids whose network namespace is one of these: ``ip netns pids``."""
    inodes = set()
    for name in namespaces:
        try:
            inodes.add((NETNS_DIR / name).stat().st_ino)
        except FileNotFoundError:
            continue
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            inode = (entry / "ns" / "net").stat().st_ino
        except OSError:  # it ended meanwhile
            continue
        if inode in inodes:
            found.append(int(entry.name))
    return sorted(found)


def _entered(namespace: str, work: Callable[[], _T]) -> _T:
    try:
        descriptor = os.open(NETNS_DIR / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        msg = f"namespace {namespace} does not exist"
        raise LabError(msg) from exc
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            msg = f"namespace {namespace}: {os.strerror(ctypes.get_errno())}"
            raise LabError(msg)
    finally:
        os.close(descriptor)
    return work()


def _failed(stderr: str, commands: Sequence[str]) -> str:
    lines = [line for line in stderr.splitlines() if line]
    for line in lines:
        _, found, number = line.partition("Command failed -:")
        if found and number.isdecimal():
            why = "; ".join(other for other in lines if other != line)
            return f"`{commands[int(number) - 1]}`: {why}"
    return "; ".join(lines) or "failed without a word"
