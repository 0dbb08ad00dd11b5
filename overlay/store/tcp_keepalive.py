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

_EVERY_S: Final = 1  # the least that the kernel knows
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


def probe(connection: socket.socket, every_s: int = _EVERY_S) -> None:
    """Have the kernel probe a connection, and end it after silence of twice as long.

    With a user timeout that decides, once a probe was sent, and no number of
    probes does (tcp(7), tcp_keepalive_timer). Raises OSError.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        connection.setsockopt(socket.IPPROTO_TCP, option, every_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2000 * every_s)  # ms


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
        probe(connection)
    return True
