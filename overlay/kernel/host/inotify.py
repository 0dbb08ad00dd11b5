"""How many inotify instances and watches are left to this user (inotify(7)).

There is no counter to read. Instances are taken and given back: container
runtimes, kubelet and log readers take one each. Watches are counted where
/proc shows them, one line each.
"""

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from overlay.kernel.base import KernelError

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PROC: Final = Path("/proc")
_INOTIFY: Final = "anon_inode:inotify"
_AT_LIMIT: Final = frozenset({errno.EMFILE, errno.ENOSPC})


def watches_used() -> int:
    """Return how many files this user's processes watch, as far as /proc shows them."""
    own = os.geteuid()
    return sum(_watches_of(process) for process in _PROC.iterdir() if _is_of(process, own))


def _is_of(process: Path, user: int) -> bool:
    try:
        return process.name.isdecimal() and process.stat().st_uid == user
    except OSError:  # it has ended meanwhile
        return False


def _watches_of(process: Path) -> int:
    found = 0
    try:
        for descriptor in (process / "fd").iterdir():
            try:
                if os.readlink(descriptor) == _INOTIFY:  # noqa: PTH115 - a magic link
                    shown = (process / "fdinfo" / descriptor.name).read_text()
                    found += shown.count("inotify wd:")
            except OSError:  # closed meanwhile
                continue
    except OSError:
        return found
    return found


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
