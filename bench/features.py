"""Offloads of a link, read and set: ``ethtool -k`` and ``ethtool -K``. Source: linux/ethtool.h."""

import contextlib
import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from overlay.lab import netns

_SIOCETHTOOL: Final = 0x8946
_VALUE: Final = struct.Struct("=II")  # struct ethtool_value
_IFREQ: Final = struct.Struct("16sP16x")
_GET: Final = {"tx": 0x16, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}  # ETHTOOL_G...; to set: one more


def feature(link: str, name: str) -> bool:
    """Return whether a feature of a link in the thread's namespace is on. Raises OSError."""
    return bool(_ask(link, _GET[name], 0))


def set_feature(link: str, name: str, *, is_on: bool) -> None:
    """Turn a feature of a link in the thread's namespace on or off. Raises OSError."""
    _ask(link, _GET[name] + 1, int(is_on))


@contextlib.contextmanager
def features(namespace: str, links: Sequence[str], wanted: Mapping[str, bool]) -> Iterator[None]:
    """Have features of a namespace's links as ``wanted``; afterwards they are as before."""

    def change() -> list[tuple[str, str, bool]]:
        before = [(link, name, feature(link, name)) for link in links for name in wanted]
        for link in links:
            for name, is_on in wanted.items():
                set_feature(link, name, is_on=is_on)
        return before

    before = netns.inside(namespace, change)
    try:
        yield
    finally:

        def put_back() -> None:
            for link, name, is_on in before:
                set_feature(link, name, is_on=is_on)

        netns.inside(namespace, put_back)


def _ask(link: str, command: int, value: int) -> int:
    buffer = ctypes.create_string_buffer(_VALUE.pack(command, value))
    request = _IFREQ.pack(link.encode(), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        fcntl.ioctl(channel, _SIOCETHTOOL, request)
    return int(_VALUE.unpack(buffer.raw[: _VALUE.size])[1])
