"""What the kernel counts for one container, in control groups of either version."""

from pathlib import Path
from typing import Final

_TOP: Final = Path("/sys/fs/cgroup")


class Cgroup:
    """The control group of a process, found in what its ``/proc/PID/cgroup`` says."""

    def __init__(self, listing: str) -> None:
        self._paths: dict[str, str] = {}
        for line in listing.splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                self._paths[controller] = path

    def memory_limit(self) -> int:
        """Return the most memory that it may have, in bytes."""
        return int(self._read("memory", "memory.limit_in_bytes", "memory.max"))

    def memory_peak(self) -> int:
        """Return the most that it has had, in bytes: files that were read and children included."""
        return int(self._read("memory", "memory.max_usage_in_bytes", "memory.peak"))

    def cpu_s(self) -> float:
        """Return the processor time used so far, in seconds."""
        text = self._read("cpuacct", "cpuacct.usage", "cpu.stat")
        if text.startswith("usage_usec"):
            return int(text.split()[1]) / 1e6
        return int(text) / 1e9

    def _read(self, controller: str, first: str, second: str) -> str:
        """Return a file's content: ``first`` in version 1, else ``second``."""
        if controller in self._paths:
            return (_TOP / controller / self._paths[controller].lstrip("/") / first).read_text()
        return (_TOP / self._paths[""].lstrip("/") / second).read_text()
