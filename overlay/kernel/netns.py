"""Working inside another network namespace, by its descriptor.

``setns`` changes the calling thread alone. A socket stays in the namespace it
was made in, so one is made inside and used from outside.
"""

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.rtnl import RtnlSocket

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class NamespaceId:
    """What tells network namespaces apart: device and inode of their file."""

    device: int
    inode: int


def namespace_of(descriptor: int) -> NamespaceId:
    """Return the identity of the network namespace behind ``descriptor``.

    Raises KernelError for a descriptor of anything else.
    """
    try:
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError as exc:
        msg = "not a namespace"
        raise KernelError(msg) from exc
    if kind != _CLONE_NEWNET:
        msg = "a namespace, but not a network namespace"
        raise KernelError(msg)
    found = os.fstat(descriptor)
    return NamespaceId(found.st_dev, found.st_ino)


def own_namespace() -> NamespaceId:
    """Return the identity of the calling thread's network namespace."""
    with _own_descriptor() as descriptor:
        return namespace_of(descriptor)


def open_rtnl(descriptor: int) -> RtnlSocket:
    """Return a socket inside the namespace; the calling thread is back outside afterwards.

    Raises KernelError when the namespace cannot be entered.
    """
    with _own_descriptor() as home:
        _enter(descriptor)
        try:
            return RtnlSocket()
        except OSError as exc:
            msg = f"no netlink socket in the namespace: {exc}"
            raise KernelError(msg) from exc
        finally:
            # A thread that cannot go home must not go on: it would work on the pod.
            _enter(home)


def enable_ipv6(descriptor: int, interface: str) -> None:
    """Let an interface of the namespace have IPv6 addresses, where a sysctl forbids them.

    Some runtimes switch IPv6 off for all that comes, and still ask for a
    dual-stack network. Without IPv6 in the kernel nothing is done.
    """
    # /proc/sys/net shows the namespace of the thread that looks.
    path = Path("/proc/sys/net/ipv6/conf") / interface / "disable_ipv6"
    with _own_descriptor() as home:
        _enter(descriptor)
        try:
            if path.read_text() != "0\n":
                path.write_text("0\n")
        except OSError:
            return  # the address itself will tell
        finally:
            _enter(home)


def write_sysctls(descriptor: int, values: Mapping[str, str]) -> None:
    """Write values below /proc/sys of the namespace; those that are not there are left out."""
    with _own_descriptor() as home:
        _enter(descriptor)
        try:
            for name, value in values.items():
                with contextlib.suppress(OSError):
                    (Path("/proc/sys") / name).write_text(f"{value}\n")
        finally:
            _enter(home)


@contextmanager
def _own_descriptor() -> Iterator[int]:
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        msg = f"setns: {os.strerror(number)}"
        raise KernelError(msg)
