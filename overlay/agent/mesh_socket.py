"""The UDP sockets that probes and echoes go through, one for each family."""

import contextlib
import errno
import selectors
import socket
from collections.abc import Iterator
from typing import Final

from overlay.model.address import FAMILIES, Family, IPAddress

# linux/in.h and linux/in6.h; the module socket does not name them all.
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_PMTUDISC_PROBE: Final = 3  # don't fragment, and trust no path MTU that ICMP told of
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_BYTES: Final = 1 << 20  # a burst of large echoes
_LONGEST: Final = 65535
_KIND: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class ProbeSockets:
    """Bound to ``port`` of every address. Raises OSError where no family can be bound.

    ``wake`` may be called from any thread; all else belongs to one.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[Family, socket.socket] = {}
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)  # noqa: FBT003 - the standard library's
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            for family in FAMILIES:
                self._bind(family)
        except OSError:
            self.close()
            raise

    def _bind(self, family: Family) -> None:
        try:
            made = socket.socket(_KIND[family], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as exc:
            if exc.errno == errno.EAFNOSUPPORT:
                return
            raise
        self._sockets[family] = made
        with contextlib.suppress(OSError):  # without CAP_NET_ADMIN: the kernel's default
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        if family is Family.IPV4:
            made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        made.bind(("", self._port))
        self._selector.register(made, selectors.EVENT_READ)

    def send(self, address: IPAddress, data: bytes) -> None:
        """Send a datagram that nobody fragments; what cannot be sent counts as lost."""
        family = Family(address.version)
        with contextlib.suppress(OSError):
            if family in self._sockets:
                self._sockets[family].sendto(data, (str(address), self._port))

    def answer(self, data: bytes, family: Family, sender: tuple[str, int]) -> None:
        """Send a datagram back to where one came from."""
        with contextlib.suppress(OSError):
            self._sockets[family].sendto(data, sender)

    def receive(self, timeout_s: float) -> Iterator[tuple[bytes, Family, tuple[str, int]]]:
        """Wait at most ``timeout_s`` for datagrams, and yield those that are there."""
        if not self._selector.select(max(0.0, timeout_s)):
            return
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        for family, each in self._sockets.items():
            while True:
                try:
                    data, sender = each.recvfrom(_LONGEST)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error for what was sent earlier
                    continue
                yield data, family, sender

    def wake(self) -> None:
        """Make ``receive`` return."""
        with contextlib.suppress(OSError):
            self._waker.send(b"\0", socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Give back the port."""
        for each in (*self._sockets.values(), self._woken, self._waker):
            each.close()
        self._selector.close()
