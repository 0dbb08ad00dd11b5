"""Unix sockets of this host."""

import socket
from pathlib import Path


def is_answered(path: Path) -> bool:
    """Return whether somebody accepts connections on ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
