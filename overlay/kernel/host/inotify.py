"""How many inotify instances are left to this user: by taking some and giving them back.

There is no counter to read; container runtimes, kubelet and log readers take
one each (inotify(7)).
"""

import ctypes
import errno
import os
from typing import Final

from overlay.kernel.base import KernelError

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_AT_LIMIT: Final = frozenset({errno.EMFILE, errno.ENOSPC})


def instances_left(most: int) -> int:
    """Return how many instances could be had, up to ``most``. Raises KernelError."""
    taken: list[int] = []
    try:
        while len(taken) < most:
            descriptor = _LIBC.inotify_init1(os.O_CLOEXEC)
            if descriptor < 0:
                number = ctypes.get_errno()
                if number in _AT_LIMIT:
                    break
                msg = f"inotify: {os.strerror(number)}"
                raise KernelError(msg)
            taken.append(descriptor)
        return len(taken)
    finally:
        for descriptor in taken:
            os.close(descriptor)
