"""Who this node is: its name, its identity in the store, and what tells it from a clone."""

import hashlib
import re
import socket
from pathlib import Path
from typing import Final

from overlay.kernel.base import KernelError
from overlay.kernel.netns import own_namespace
from overlay.model.errors import UsageError
from overlay.model.node import NodeIdentity

_MACHINE_ID: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")


def node_identity(node_name: str) -> NodeIdentity:
    """Return the node called ``node_name``; where that is empty, this host by its machine id.

    Raises UsageError.
    """
    if node_name:
        if not _NODE_NAME.match(node_name):
            raise UsageError(
                f"--node-name {node_name[:80]!r}: use letters, digits, dots and dashes only"
            )
        return NodeIdentity(node_name, node_name, _boot())
    name = socket.gethostname()
    for path in _MACHINE_ID:
        try:
            machine_id = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if re.fullmatch(r"[0-9a-f]{32}", machine_id):
            return NodeIdentity(machine_id, name, _boot())
    raise UsageError(
        "this host has no machine id (/etc/machine-id): make one with "
        "`systemd-machine-id-setup`, or name the node with --node-name"
    )


def _boot() -> str:
    """Return what tells this host from a clone of it until the next boot; empty where unknown.

    With the network namespace, since several nodes may live on one kernel.
    """
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        namespace = own_namespace()
    except (OSError, UnicodeDecodeError, KernelError):
        return ""
    seed = f"{boot_id}\0{namespace.device}\0{namespace.inode}".encode()
    return hashlib.sha256(seed).hexdigest()[:16]
