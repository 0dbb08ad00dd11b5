"""What a process and its children have used: proc(5)."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")  # a second


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds with ended children, memory now and at its peak in MiB."""

    cpu_s: float
    rss_mib: float
    peak_mib: float


def usage(pid: int) -> Usage:
    """Return what a process and all that descend from it have used.

    Raises ProcessLookupError when it is gone.
    """
    found = [_one(pid)]
    for child in _descendants(pid):
        with contextlib.suppress(ProcessLookupError):  # it has ended, and counts in its parent
            found.append(_one(child))
    return Usage(
        sum(each.cpu_s for each in found),
        sum(each.rss_mib for each in found),
        sum(each.peak_mib for each in found),
    )


def cpu_s(stat: str) -> float:
    """Return the seconds in the text of ``/proc/PID/stat``, ended children's included."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(fields[i]) for i in (11, 12, 13, 14)) / _TICKS


def memory_mib(status: str, name: str) -> float:
    """Return one line of ``/proc/PID/status`` that is in kB, as MiB; 0 where there is none."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _one(pid: int) -> Usage:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError) as exc:
        msg = f"process {pid} is gone"
        raise ProcessLookupError(msg) from exc
    return Usage(cpu_s(stat), memory_mib(status, "VmRSS"), memory_mib(status, "VmHWM"))


def _descendants(pid: int) -> Iterator[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # the process has ended
        return
    for thread in threads:
        try:
            children = (thread / "children").read_text().split()
        except OSError:  # the thread has ended
            continue
        for child in map(int, children):
            yield child
            yield from _descendants(child)
