"""Which programs run in this network namespace, by their names."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.container import hides_processes

_PROC: Final = Path("/proc")
_UNSEEN: Final = (
    "the host's processes are not to be seen from this container: run doctor on the host itself"
)
_COMM_BYTES: Final = 15  # TASK_COMM_LEN less the NUL (linux/sched.h)


def running(names: Collection[str]) -> frozenset[str]:
    """Return those of ``names`` that a process in the thread's network namespace has.

    A process whose namespace cannot be read (another user's) counts as here.
    Raises KernelError in a container whose processes are not the host's, unless
    all are found even so.
    """
    own = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116 - follows the magic link
    shortened = {name[:_COMM_BYTES]: name for name in names}
    found: set[str] = set()
    for process in _PROC.iterdir():
        if not process.name.isdecimal():
            continue
        try:
            name = shortened.get((process / "comm").read_text().rstrip("\n"))
            if name is None or name in found:
                continue
            if (process / "ns/net").stat().st_ino == own:
                found.add(name)
        except PermissionError:
            found.add(str(name))
        except OSError:  # it has ended meanwhile
            continue
    if len(found) < len(shortened) and hides_processes():
        raise KernelError(_UNSEEN)
    return frozenset(found)
