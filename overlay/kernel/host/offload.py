"""Checksum offload of a link: ``ethtool -k LINK | grep tx-checksumming``.

Source: linux/ethtool.h, linux/sockios.h.
"""

import errno
import fcntl
import socket
import struct
from typing import Final

from overlay.kernel.base import KernelError

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GTXCSUM: Final = 0x16
_VALUE: Final = struct.Struct("=II")  # struct ethtool_value
_IFREQ: Final = struct.Struct("16sP16x")  # name, pointer, the rest of the union


def has_checksum_offload(link: str) -> bool:
    """Return whether the kernel leaves checksums of what ``link`` sends to the device.

    False too for a device that knows no such setting. Raises KernelError.
    """
    import ctypes

    value = ctypes.create_string_buffer(_VALUE.pack(_ETHTOOL_GTXCSUM, 0))
    request = _IFREQ.pack(link.encode(), ctypes.addressof(value))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            fcntl.ioctl(channel, _SIOCETHTOOL, request)
    except OSError as exc:
        if exc.errno == errno.EOPNOTSUPP:
            return False
        msg = f"{link}: its checksum offload cannot be read: {exc.strerror}"
        raise KernelError(msg) from exc
    return bool(_VALUE.unpack(value.raw[: _VALUE.size])[1])
