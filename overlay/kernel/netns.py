"""Working inside another network namespace, by its descriptor.

``setns`` changes the calling thread alone. A socket stays in the namespace it
was made in, so one is made inside and used from outside.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.rtnl import RtnlSocket

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h
_NONE: Final[Mapping[str, str]] = {}
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


def open_rtnl(
    descriptor: int, sysctls: Mapping[str, str] = _NONE, home: int | None = None
) -> RtnlSocket:
    """Return a socket inside the namespace; the calling thread is back outside afterwards.

    ``sysctls``, by their path below /proc/sys, are set in the namespace on the
    way; those that are not there are left out. ``home`` is a descriptor of the
    thread's own namespace, where there is one already. Raises KernelError when
    the namespace cannot be entered.
    """
    if home is None:
        with _own_descriptor() as own:
            return _opened(descriptor, sysctls, own)
    return _opened(descriptor, sysctls, home)


def _opened(descriptor: int, sysctls: Mapping[str, str], home: int) -> RtnlSocket:
    _enter(descriptor)
    try:
        for name, value in sysctls.items():
            with contextlib.suppress(OSError):  # what needs it will tell
                _ensure(f"/proc/sys/{name}", f"{value}\n".encode())
        return RtnlSocket()
    except OSError as exc:
        msg = f"no netlink socket in the namespace: {exc}"
        raise KernelError(msg) from exc
    finally:
        # A thread that cannot go home must not go on: it would work on the pod.
        _enter(home)


def open_socket(descriptor: int, family: int, kind: int, protocol: int) -> socket.socket:
    """Return a socket that lives in the namespace; the calling thread is back outside.

    Raises KernelError when the namespace cannot be entered, OSError for the socket.
    """
    with _own_descriptor() as home:
        _enter(descriptor)
        try:
            return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        finally:
            _enter(home)


def _ensure(path: str, wanted: bytes) -> None:
    """Write to a file of /proc/sys, which shows the namespace of the thread that looks.

    By hand: each pod waits for it, and pathlib takes four times as long.
    """
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.read(file, 64) != wanted:
            os.pwrite(file, wanted, 0)
    finally:
        os.close(file)


def enter_new() -> None:
    """Put the calling thread into a network namespace of its own, gone when the thread ends.

    Raises KernelError.
    """
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        msg = f"no network namespace to try things in: unshare: {os.strerror(number)}"
        raise KernelError(msg)


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
