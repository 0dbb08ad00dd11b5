"""The machine that a bench runs on, in one line."""

import os
import platform
import subprocess
from pathlib import Path

from overlay.lab.etcd import find_etcd


def describe() -> str:
    """Return processor, cores, memory, load, and the versions that matter.

    The load average says whether the machine had other work.
    """
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    shown = subprocess.run([find_etcd(), "--version"], capture_output=True, text=True, check=True)
    etcd = shown.stdout.split("\n", 1)[0].removeprefix("etcd Version: ")
    kernel = platform.release().partition("-")[0]
    return (
        f"{_processor()}, {cores} cores, {memory:.0f} GiB, kernel {kernel}, "
        f"Python {platform.python_version()}, etcd {etcd}, load {os.getloadavg()[0]:.1f}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
