"""The machine that a bench runs on, in one line, and whether it has other work."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Final

from overlay.lab.etcd import find_etcd

_TMPFS: Final = Path("/dev/shm")  # noqa: S108 - a mount, as Linux has it; what is in it has names of its own
_LOOK_S: Final = 1.0
_QUIET: Final = 0.1  # of a core busy with something else; more is named


def describe() -> str:
    """Return processor, cores, memory, the versions that matter, and where etcd writes."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    shown = subprocess.run([find_etcd(), "--version"], capture_output=True, text=True, check=True)
    etcd = shown.stdout.split("\n", 1)[0].removeprefix("etcd Version: ")
    kernel = platform.release().partition("-")[0]
    disk = "tmpfs" if etcd_place() == _TMPFS else "disk"
    return (
        f"{_processor()}, {cores()} cores, {memory:.0f} GiB, kernel {kernel}, "
        f"Python {platform.python_version()}, etcd {etcd} on {disk}, without fsync"
    )


def etcd_place() -> Path | None:
    """Return the directory for etcd's data: a tmpfs where there is one, else None."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return None
    is_there = any(line.split()[1:3] == [str(_TMPFS), "tmpfs"] for line in mounts)
    return _TMPFS if is_there and os.access(_TMPFS, os.W_OK) else None


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def busy_cores() -> float:
    """Return how many processors are busy while this process does nothing for a second."""
    before = _ticks()
    time.sleep(_LOOK_S)
    idle, total = (now - then for now, then in zip(_ticks(), before, strict=True))
    return (os.cpu_count() or 1) * (1 - idle / total) if total else 0.0


def load(busy: float) -> str:
    """Return what is said of a machine with ``busy`` processors at work before a bench began.

    >>> load(0.04)
    'quiet before it'
    >>> load(1.26)
    'NOT QUIET: 1.3 cores were busy with something else before it'
    """
    if busy <= _QUIET:
        return "quiet before it"
    return f"NOT QUIET: {busy:.1f} cores were busy with something else before it"


def _ticks() -> tuple[int, int]:
    """Return the idle ticks and all ticks of all processors: proc(5)."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
