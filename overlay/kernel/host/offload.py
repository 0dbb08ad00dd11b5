"""Checksum offload of a link: ``ethtool -k LINK | grep tx-checksumming``, read and set.

Sources: linux/ethtool.h, linux/sockios.h.
"""

import errno
import fcntl
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from overlay.kernel.base import KernelError

CHOICES: Final = ("auto", "on", "off")
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GTXCSUM, _ETHTOOL_STXCSUM = 0x16, 0x17
_VALUE: Final = struct.Struct("=II")  # struct ethtool_value
_IFREQ: Final = struct.Struct("16sP16x")  # name, pointer, the rest of the union
# A masqueraded packet into a tunnel got a wrong outer UDP checksum when the device was left to
# compute the inner one (flannel#1282, kubernetes#88986); mended by ea64d8d6c675 in Linux 5.7.
_MENDED: Final = (5, 7)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was changed, and what could not be, each a sentence for people."""

    changes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def spoils_checksums(release: str) -> bool:
    """Return whether a kernel spoils checksums of what is masqueraded into a tunnel.

    By its version alone: what a distribution put back into an older kernel is not seen.
    Raises ValueError for a release without a version.

    >>> spoils_checksums("5.4.0-216-generic"), spoils_checksums("5.7.0"), spoils_checksums("6.1")
    (True, False, False)
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        msg = f"kernel {release!r} has no version that can be read"
        raise ValueError(msg)
    return (int(found[1]), int(found[2])) < _MENDED


def has_checksum_offload(link: str) -> bool:
    """Return whether the kernel leaves checksums of what ``link`` sends to the device.

    False too for a device that knows no such setting. Raises KernelError.
    """
    try:
        return bool(_ask(link, _ETHTOOL_GTXCSUM, 0))
    except OSError as exc:
        if exc.errno == errno.EOPNOTSUPP:
            return False
        msg = f"{link}: its checksum offload cannot be read: {exc.strerror}"
        raise KernelError(msg) from exc


def set_checksum_offload(link: str, *, is_on: bool) -> None:
    """Leave the checksums of what ``link`` sends to the device, or to the kernel.

    ``ethtool -K LINK tx off``; segmentation offload goes with it. Repeating it is safe.
    Raises KernelError.
    """
    try:
        _ask(link, _ETHTOOL_STXCSUM, int(is_on))
    except OSError as exc:
        value = "on" if is_on else "off"
        msg = (
            f"{link}: its checksum offload cannot be turned {value}: {exc.strerror}; try "
            f"`ethtool -K {link} tx {value}` on the host"
        )
        raise KernelError(msg) from exc


def ensure(links: Iterable[str], choice: str, release: str) -> Outcome:
    """Bring the checksum offload of ``links`` in line with ``choice``, one of ``CHOICES``.

    ``auto`` turns it off where a kernel of this ``release`` spoils checksums, and touches nothing
    elsewhere. Returns what was changed; repeating it is safe and changes nothing.
    """
    if choice == "auto":
        try:
            is_bad = spoils_checksums(release)
        except ValueError as exc:
            return Outcome(problems=(f"{exc}; set --vxlan-checksum-offload to on or off",))
        if not is_bad:
            return Outcome()
    is_on = choice == "on"
    changes: list[str] = []
    problems: list[str] = []
    for link in links:
        try:
            if has_checksum_offload(link) is not is_on:
                set_checksum_offload(link, is_on=is_on)
                way = "off -> on" if is_on else "on -> off"
                changes.append(f"checksum offload of {link}: {way}")
        except KernelError as exc:
            problems.append(str(exc))
    return Outcome(tuple(changes), tuple(problems))


def _ask(link: str, command: int, value: int) -> int:
    """Return the value that ``SIOCETHTOOL`` leaves. Raises OSError."""
    import ctypes

    buffer = ctypes.create_string_buffer(_VALUE.pack(command, value))
    request = _IFREQ.pack(link.encode(), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        fcntl.ioctl(channel, _SIOCETHTOOL, request)
    return int(_VALUE.unpack(buffer.raw[: _VALUE.size])[1])
