"""Working inside another network namespace, by its descriptor.

``setns`` changes the calling thread alone. A socket stays in the namespace it
was made in, so one is made inside and used from outside.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.rtnl import RtnlSocket

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h
_NEEDED: Final = "(it takes CAP_SYS_ADMIN, which a container has not; on the host, root has it)"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class NamespaceEntryError(KernelError):
    """The kernel does not let this process enter a namespace, or make one."""


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


@contextmanager
def entered(descriptor: int, home: int | None = None) -> Iterator[None]:
    """Keep the calling thread in the namespace for the block.

    ``home`` is a descriptor of the thread's own namespace, where there is one
    already. Raises NamespaceEntryError without CAP_SYS_ADMIN, KernelError for
    what is no network namespace.
    """
    with _own_descriptor() if home is None else contextlib.nullcontext(home) as own:
        _enter(descriptor)
        try:
            yield
        finally:
            # A thread that cannot go home must not go on: it would work on the pod.
            _enter(own)


def inode_at(path: str) -> int:
    """Return the inode of what lies at ``path``, as we see it; 0 where nothing does.

    All namespaces are on one file system, so it tells them apart (fs/nsfs.c).
    """
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - pathlib takes no NUL
    except (OSError, ValueError):
        return 0


def inhabited_namespaces() -> frozenset[int]:
    """Return the inodes of the network namespaces that processes live in, as far as we see any."""
    processes = (path for path in Path("/proc").iterdir() if path.name.isdecimal())
    return frozenset(inode_at(f"{path}/ns/net") for path in processes) - {0}


def is_namespace_gone(path: str, inode: int, inhabited: Collection[int]) -> bool:
    """Return whether the namespace that lay at ``path`` surely is gone: with 0 for it, no.

    Where its folder is not to be seen, nothing can be said.
    """
    is_visible = inode != 0 and os.path.isdir(os.path.dirname(path))  # noqa: PTH112, PTH120
    return is_visible and inode_at(path) != inode and inode not in inhabited


def open_rtnl(descriptor: int) -> RtnlSocket:
    """Return a socket inside the namespace; the calling thread is back outside afterwards.

    Raises KernelError when the namespace cannot be entered.
    """
    with entered(descriptor):
        return RtnlSocket()


def open_socket(descriptor: int, family: int, kind: int, protocol: int) -> socket.socket:
    """Return a socket that lives in the namespace; the calling thread is back outside.

    Raises KernelError when the namespace cannot be entered, OSError for the socket.
    """
    with entered(descriptor):
        return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)


def enter_new() -> None:
    """Put the calling thread into a network namespace of its own, gone when the thread ends.

    Raises KernelError.
    """
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        msg = f"no network namespace to try things in: unshare: {os.strerror(number)}"
        if number == errno.EPERM:
            raise NamespaceEntryError(f"{msg} {_NEEDED}")
        raise KernelError(msg)


@contextmanager
def _own_descriptor() -> Iterator[int]:
    try:
        descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        msg = f"/proc/thread-self/ns/net: {exc.strerror}"
        raise KernelError(msg) from exc
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        msg = f"setns: {os.strerror(number)}"
        if number == errno.EPERM:
            raise NamespaceEntryError(f"{msg} {_NEEDED}")
        raise KernelError(msg)
