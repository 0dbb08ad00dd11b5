"""Connections of this process that the kernel is to probe."""

import socket
from pathlib import Path

from overlay.store.tcp_keepalive import keep_alive


def test_connections_to_the_port_are_probed_and_no_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("::1", 0),
                              family=socket.AF_INET6) as other:  # fmt: skip
        port = one.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port)) as to_it,
            socket.create_connection(other.getsockname()[:2]) as elsewhere,
            socket.socket(socket.AF_UNIX) as unconnected,
        ):
            before = sorted(Path("/proc/self/fd").iterdir())
            assert keep_alive(port) == 1
            assert keep_alive(port) == 1, "repeating it is safe"
            probed = [each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for each in
                      (to_it, elsewhere, unconnected)]  # fmt: skip
            assert [bool(each) for each in probed] == [True, False, False]
            assert to_it.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1
            to_it.sendall(b"still open")
            after = sorted(Path("/proc/self/fd").iterdir())
            assert after == before, "no descriptor is left"
