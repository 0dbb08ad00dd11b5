"""Whether this process looks at the host from inside a container, and so sees part of it alone."""

import functools
from pathlib import Path
from typing import Final

_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # linux/proc_ns.h, PROC_PID_INIT_INO
# A machine in a container (kind, LXC) begins with one of them, and is a whole host.
_INITS: Final = frozenset({"systemd", "init", "runit", "s6-svscan", "openrc-init"})


@functools.cache
def hides_processes() -> bool:
    """Return whether the host's processes are not to be seen, nor their numbers ours."""
    try:
        if Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE:
            return False
        return Path("/proc/1/comm").read_text(encoding="utf-8").strip() not in _INITS
    except (OSError, UnicodeDecodeError):
        return False
