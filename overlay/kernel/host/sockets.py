"""UDP sockets that are bound to a port, and the process that holds one.

Format: ``udp_seq_show`` in net/ipv4/udp.c; proc(5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlay.kernel.base import KernelError

_PROC: Final = Path("/proc")
# thread-self: a thread may be in another network namespace than its process.
_TABLES: Final = (_PROC / "thread-self/net/udp", _PROC / "thread-self/net/udp6")
_LOCAL, _INODE = 1, 9  # columns


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A UDP socket; one of a VXLAN device looks the same, but no process holds it."""

    port: int
    inode: int


def bound_to(port: int) -> Sequence[BoundSocket]:
    """Return the UDP sockets of ``port``, IPv4's first. Raises KernelError."""
    return [found for found in _sockets() if found.port == port]


def holder_of(bound: BoundSocket) -> str | None:
    """Return ``NAME (pid PID)`` of a process that holds the socket; None where none is seen.

    Looks at every descriptor of every process: some milliseconds a hundred processes.
    """
    wanted = f"socket:[{bound.inode}]"
    for process in _PROC.iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if any(str(link.readlink()) == wanted for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:  # it has ended, or is another user's
            continue
    return None


def _sockets() -> list[BoundSocket]:
    found: list[BoundSocket] = []
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
            for line in lines:
                words = line.split()
                port = int(words[_LOCAL].rpartition(":")[2], 16)
                found.append(BoundSocket(port, int(words[_INODE])))
        except FileNotFoundError:  # a kernel without IPv6
            continue
        except (OSError, ValueError, IndexError) as exc:
            msg = f"{table} cannot be read: {exc}"
            raise KernelError(msg) from exc
    return found
