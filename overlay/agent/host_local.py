"""Addresses that host-local holds on this node: pods of flannel's chain, from before our agent.

host-local is the IPAM plugin of the reference plugins. It keeps a file for each
address, DIR/NETWORK/ADDRESS, with container and interface in it (its
``backend/disk``), and locks DIR/NETWORK/lock meanwhile.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from overlay.model.address import IPAddress

log = logging.getLogger(__name__)

_LONGEST: Final = 1024  # bytes of a file that are read; a container's id has 64


class HostLocal:
    """For any thread. A directory that is not there holds nothing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def addresses(self) -> frozenset[IPAddress]:
        """Return what is held, in any network. Raises OSError where that cannot be told."""
        return frozenset(address for _, address in self._files())

    def release(self, container: str, interface: str) -> frozenset[IPAddress]:
        """Let go what is held for an interface of a container that is deleted; return it.

        Its own chain would do so; where ours stands in its place nobody else
        does. Repeating it is safe. Raises OSError.
        """
        gone: set[IPAddress] = set()
        for path, address in self._files():
            if _holder(path) != (container, interface):
                continue
            with _locked(path.parent):
                if _holder(path) == (container, interface):
                    path.unlink(missing_ok=True)
                    gone.add(address)
        return frozenset(gone)

    def _files(self) -> Iterator[tuple[Path, IPAddress]]:
        try:
            networks = [each for each in self._directory.iterdir() if each.is_dir()]
        except FileNotFoundError:
            return
        for network in networks:
            for path in network.iterdir():
                try:
                    address = ip_address(path.name)
                except ValueError:
                    continue  # its lock, and what it gave last
                yield path, address


def _holder(path: Path) -> tuple[str, str] | None:
    """Return container and interface of a file; None where it is gone or says neither."""
    try:
        with path.open("rb") as file:
            lines = file.read(_LONGEST).decode(errors="replace").split()
    except FileNotFoundError:
        return None
    return (lines[0], lines[1]) if len(lines) == 2 else None


@contextmanager
def _locked(network: Path) -> Iterator[None]:
    """Hold the lock that host-local takes (flock)."""
    descriptor = os.open(network / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
