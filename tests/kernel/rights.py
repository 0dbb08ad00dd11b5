"""A thread with the rights of a container; a pod's namespace as the CNI plugin hands it over."""

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from overlay.kernel.pod_namespace import PodNamespace
from tests.kernel.netns import Netns

NET_ADMIN, NET_RAW = 12, 13  # linux/capability.h
_VERSION_3: Final = 0x20080522
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def keep_capabilities(*kept: int) -> None:
    """Take all other capabilities off the calling thread, for the rest of its life."""
    mask = sum(1 << number for number in kept)
    header = struct.pack("=Ii", _VERSION_3, 0)
    data = struct.pack("=6I", mask, mask, 0, 0, 0, 0)
    if _LIBC.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@contextlib.contextmanager
def handed_over(pod: Netns, *, is_whole: bool = True) -> Iterator[PodNamespace]:
    """Open a pod's namespace; with ``is_whole`` the socket and the sysctls inside as well."""

    def inside() -> tuple[socket.socket, int]:
        sysctls = os.open("/proc/sys/net/ipv6/conf", os.O_RDONLY | os.O_DIRECTORY)
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE), sysctls

    descriptor = os.open(pod.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not is_whole:
            yield PodNamespace(descriptor)
            return
        rtnl, sysctls = pod.call(inside)
        try:
            yield PodNamespace(descriptor, rtnl.fileno(), sysctls)
        finally:
            os.close(sysctls)
            rtnl.close()
    finally:
        os.close(descriptor)
