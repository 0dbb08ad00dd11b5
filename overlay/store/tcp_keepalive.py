"""TCP keepalive, by the kernel alone, for connections that a library made and keeps to itself.

etcd takes HTTP/2 pings no more often than every 5 s. The kernel's probes are
none of its business, wake no process, and end a connection that leads nowhere
after 2 s of silence. gRPC has no option for them.
"""

import contextlib
import os
import socket
import stat
from typing import Final

# tcp(7); a second is the least that the kernel knows. With a user timeout that decides,
# once a probe was sent, and no number of probes does (tcp_keepalive_timer).
_OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),  # seconds
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2000),  # milliseconds
)
_INTERNET: Final = {socket.AF_INET, socket.AF_INET6}


def keep_alive(port: int) -> int:
    """Have the kernel probe every TCP connection of this process to ``port``; return how many.

    Repeating it is safe.
    """
    count = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names of numbers, no paths
        with contextlib.suppress(OSError):  # no connection, or closed meanwhile
            count += _probed(int(name), port)
    return count


def _probed(descriptor: int, port: int) -> bool:
    # A descriptor of our own: the library may close its one at any time.
    own = os.dup(descriptor)
    if not stat.S_ISSOCK(os.fstat(own).st_mode):
        os.close(own)
        return False
    with socket.socket(fileno=own) as connection:
        if connection.family not in _INTERNET or connection.type != socket.SOCK_STREAM:
            return False
        if connection.getpeername()[1] != port:
            return False
        for level, option, value in _OPTIONS:
            connection.setsockopt(level, option, value)
    return True
