"""A pod's network namespace as the CNI plugin hands it over, and how it is worked on from outside.

To enter a namespace takes CAP_SYS_ADMIN, which an agent in a container has
not. The runtime executes the plugin with all rights, so that one opens inside
what is needed: a netlink socket and a directory of sysctls belong to the namespace
they were opened in, whoever uses them, and CAP_NET_ADMIN is enough to use
them. Where they did not come along, the agent enters by itself.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.netns import NamespaceEntryError, entered, namespace_of
from overlay.kernel.rtnl import RtnlSocket

_SIOCGSKNS: Final = 0x894C  # linux/sockios.h
# /proc/sys/net itself would not do: what is below it is looked up anew in the
# namespace of who asks (fs/proc/proc_sysctl.c, sysctl_follow_link).
_SYSCTLS: Final = "/proc/sys/net/ipv6/conf"
_NONE: Final[Mapping[str, str]] = {}
_REFUSED: Final = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True)
class PodNamespace:
    """Descriptors: of the namespace, and of what was opened inside of it, if anything was.

    ``rtnl`` is a NETLINK_ROUTE socket, ``sysctls`` the directory
    /proc/sys/net/ipv6/conf, absent where the kernel has no IPv6. Who handed
    them over closes them.
    """

    descriptor: int
    rtnl: int | None = None
    sysctls: int | None = None


def open_pod_rtnl(
    pod: PodNamespace, sysctls: Mapping[str, str] = _NONE, home: int | None = None
) -> RtnlSocket:
    """Return a socket inside the pod's namespace, once ``sysctls`` are set there.

    Those are named by their path below /proc/sys/net/ipv6/conf; one that is
    not there is left out: what needs IPv6 will tell. ``home`` is a descriptor
    of the calling thread's own namespace, where there is one already. Raises
    KernelError when the namespace cannot be worked on, when a value cannot be
    set, or when what was handed over is of another namespace.
    """
    has_sysctls = not sysctls or pod.sysctls is not None or not Path(_SYSCTLS).exists()
    if pod.rtnl is not None and has_sysctls:
        if pod.sysctls is not None:
            _ensure(pod.sysctls, sysctls)
        return _adopted(pod.rtnl, pod.descriptor)
    try:
        with entered(pod.descriptor, home):
            if sysctls:
                _ensure_here(sysctls)
            return RtnlSocket()
    except NamespaceEntryError as exc:
        msg = (
            f"{exc}; this agent needs a plugin that hands over what it opened in the pod: install "
            "the plugin of this version, to be executed as root"
        )
        raise KernelError(msg) from exc
    except OSError as exc:
        msg = f"no netlink socket in the pod's namespace: {exc}"
        raise KernelError(msg) from exc


def _adopted(descriptor: int, namespace: int) -> RtnlSocket:
    """Return the socket that was handed over, once it is known to be one of the namespace."""
    try:
        own = os.dup(descriptor)
    except OSError as exc:
        msg = f"the plugin's socket in the pod's namespace cannot be used: {exc.strerror}"
        raise KernelError(msg) from exc
    try:
        given = socket.socket(fileno=own)
    except OSError as exc:
        os.close(own)
        msg = f"the plugin handed over no socket of the pod's namespace: {exc.strerror}"
        raise KernelError(msg) from exc
    try:
        _refuse_strange(given, namespace)
        return RtnlSocket(given)
    except OSError as exc:
        given.close()
        msg = f"the plugin's socket in the pod's namespace cannot be used: {exc.strerror}"
        raise KernelError(msg) from exc
    except KernelError:
        given.close()
        raise


def _refuse_strange(given: socket.socket, namespace: int) -> None:
    """Raise KernelError for what is no rtnetlink socket of the namespace, OSError."""
    if (given.family, given.proto) != (socket.AF_NETLINK, socket.NETLINK_ROUTE):
        raise KernelError("the plugin handed over a socket, but none of rtnetlink")
    lives_in = fcntl.ioctl(given, _SIOCGSKNS)
    try:
        if namespace_of(lives_in) != namespace_of(namespace):
            raise KernelError("the plugin handed over a socket of another namespace")
    finally:
        os.close(lives_in)


def _ensure_here(sysctls: Mapping[str, str]) -> None:
    try:
        directory = os.open(_SYSCTLS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _ensure(directory, sysctls)
    finally:
        os.close(directory)


def _ensure(directory: int, sysctls: Mapping[str, str]) -> None:
    for name, value in sysctls.items():
        try:
            _set(directory, name, f"{value}\n".encode())
        except FileNotFoundError:  # a link that has no IPv6, as one with a small MTU
            continue
        except OSError as exc:
            way_out = (
                "; the runtime must execute the plugin as root with a writable /proc/sys"
                if exc.errno in _REFUSED
                else ""
            )
            msg = f"sysctl net/ipv6/conf/{name} = {value} of the pod: {exc.strerror}{way_out}"
            raise KernelError(msg) from exc


def _set(directory: int, name: str, wanted: bytes) -> None:
    """Write where the value differs: one that is right needs no right to write."""
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        if os.read(file, 64) == wanted:
            return
    finally:
        os.close(file)
    file = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(file, wanted)
    finally:
        os.close(file)
