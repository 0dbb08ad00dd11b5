"""Routes, neighbors and forwarding entries of a namespace, as the kernel tells them.

It looks at nothing that only our agent has: not at names, marks or protocol
numbers. A route counts in the main table, a neighbor when it is permanent, a
forwarding entry when it has a destination. Layouts: linux/rtnetlink.h,
linux/neighbour.h.
"""

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Self, TypeAlias

from overlay.kernel.links import list_links
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.wire import attributes
from overlay.model.errors import OverlayError

Identity: TypeAlias = tuple[str, bytes]  # ("route", network), ("neigh", IP) or ("fdb", MAC)
Entries: TypeAlias = Mapping[Identity, bytes | None]  # gateway, MAC, or destination; None: absent

_GROUPS: Final = (3, 7, 11)  # linux/rtnetlink.h: neighbors, IPv4 routes, IPv6 routes
_BUFFER: Final = 512 << 20  # bytes: 20,000 peers tell of 80,000 changes within a second or two
_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33
_HEADER: Final = struct.Struct("=IHHII")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_NDMSG: Final = struct.Struct("=BBHiHBB")
_NEWROUTE, _DELROUTE, _GETROUTE, _NEWNEIGH, _DELNEIGH, _GETNEIGH = 24, 25, 26, 28, 29, 30
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_NDA_DST, _NDA_LLADDR = 1, 2
_MAIN, _UNICAST, _KERNEL = 254, 1, 2  # table, kind and protocol of a route
_PERMANENT: Final = 0x80
_AF_BRIDGE: Final = 7
_POLL_S: Final = 0.25


class NotRightError(OverlayError):
    """The entries did not come to be as expected: the text says which."""


class KernelEntries:
    """Follows the namespace of the thread that makes it; one thread, any, reads."""

    def __init__(self) -> None:
        self._rtnl = RtnlSocket()
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._told = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._told.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._told.bind((0, 0))
        for group in _GROUPS:
            self._told.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._wanted: Entries = {}
        self._wrong: set[Identity] = set()
        self._now = self._dump()
        # When an entry became another one, or a route of any table was set or deleted.
        self.changed_at = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._told.close()
        self._rtnl.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when something changed."""
        return self._told.fileno()

    def expect(self, wanted: Entries) -> None:
        """Name the entries that ``is_right`` looks at; others may be there."""
        self._wanted = wanted
        self._wrong = {key for key, value in wanted.items() if self._now.get(key) != value}

    @property
    def is_right(self) -> bool:
        """Return whether all entries expected are there, as of what was read."""
        return not self._wrong

    def read(self) -> None:
        """Take in what was told; does not wait. After an overflow everything is looked at."""
        while True:
            try:
                data = self._told.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self._now = self._dump()
                self.expect(self._wanted)
                self.changed_at = time.perf_counter()
                continue
            for kind, start, end in _messages(data):
                found = parse(kind, data, start, end)
                if self._note(*found) if found is not None else _is_route(kind, data, start):
                    self.changed_at = time.perf_counter()

    def wait(
        self, timeout_s: float, is_alive: Callable[[], bool], quiet_s: float = 0.0
    ) -> tuple[float, float]:
        """Wait until all is right and no entry changed for ``quiet_s``.

        Returns two times of ``time.perf_counter``: when the last entry expected
        came, and when the last change of all was told. Raises NotRightError.
        """
        deadline = time.perf_counter() + timeout_s
        right_at: float | None = self.changed_at if self.is_right else None
        while True:
            now = time.perf_counter()
            if self.is_right and right_at is not None and now >= self.changed_at + quiet_s:
                return right_at, self.changed_at
            if now > deadline or not is_alive():
                why = f"{timeout_s:g} s are over" if now > deadline else "the agent ended"
                raise NotRightError(self._problem(why))
            rest = self.changed_at + quiet_s - now if self.is_right else _POLL_S
            select.select([self], [], [], max(0.0, min(rest, _POLL_S)))
            was_right = self.is_right
            self.read()
            if self.is_right and not was_right:
                right_at = self.changed_at

    def verify(self) -> None:
        """Look at the whole kernel once more, and where the routes lead. Raises NotRightError."""
        self.read()
        self._now = self._dump()
        self.expect(self._wanted)
        if not self.is_right:
            raise NotRightError(self._problem("looked at once more"))
        tunnels = {link.index for link in list_links(self._rtnl).values() if link.vxlan is not None}
        for data, start, end in self._rtnl.dump(_GETROUTE, _RTMSG.pack(2, *[0] * 8)):
            route = parse(_NEWROUTE, data, start, end)
            if route is not None and self._wanted.get(route[0]) is not None:
                device = attributes(data, start + _RTMSG.size, end).get(_RTA_OIF, b"\0" * 4)
                if int.from_bytes(device, "little") not in tunnels:
                    msg = f"the route {route[0][1].hex()} does not lead to a VXLAN device"
                    raise NotRightError(msg)

    def _note(self, key: Identity, value: bytes | None) -> bool:
        """Take in one entry; return whether it is another than before."""
        if self._now.get(key) == value:
            return False
        if value is None:
            self._now.pop(key, None)
        else:
            self._now[key] = value
        if key in self._wanted:
            if self._wanted[key] == value:
                self._wrong.discard(key)
            else:
                self._wrong.add(key)
        return True

    def _dump(self) -> dict[Identity, bytes]:
        asked = [
            (_GETROUTE, _NEWROUTE, _RTMSG.pack(socket.AF_INET, *[0] * 8)),
            (_GETNEIGH, _NEWNEIGH, _NDMSG.pack(socket.AF_INET, *[0] * 6)),
        ]
        for link in list_links(self._rtnl).values():
            if link.vxlan is not None:
                body = _NDMSG.pack(_AF_BRIDGE, 0, 0, link.index, 0, 0, 0)
                asked.append((_GETNEIGH, _NEWNEIGH, body))
        found: dict[Identity, bytes] = {}
        for request, kind, body in asked:
            for data, start, end in self._rtnl.dump(request, body):
                entry = parse(kind, data, start, end)
                if entry is not None and entry[1] is not None:
                    found[entry[0]] = entry[1]
        return found

    def _problem(self, why: str) -> str:
        shown = ", ".join(f"{kind} {value.hex(':')}" for kind, value in sorted(self._wrong)[:3])
        return f"{why}: {len(self._wrong)} of {len(self._wanted)} entries are wrong: {shown}"


def parse(kind: int, data: bytes, start: int, end: int) -> tuple[Identity, bytes | None] | None:
    """Return the entry that a message is about, with None for one that is gone.

    Returns None for a message about something else.
    """
    if kind in {_NEWROUTE, _DELROUTE}:
        _f, length, _s, _tos, table, protocol, _sc, route, _fl = _RTMSG.unpack_from(data, start)
        parts = attributes(data, start + _RTMSG.size, end)
        if table != _MAIN or route != _UNICAST or protocol == _KERNEL:
            return None
        key = ("route", parts.get(_RTA_DST, b"") + bytes((length,)))
        return key, parts.get(_RTA_GATEWAY, b"") if kind == _NEWROUTE else None
    if kind not in {_NEWNEIGH, _DELNEIGH}:
        return None
    family, _p, _q, _index, state, _flags, _type = _NDMSG.unpack_from(data, start)
    parts = attributes(data, start + _NDMSG.size, end)
    destination, mac = parts.get(_NDA_DST), parts.get(_NDA_LLADDR)
    if family == _AF_BRIDGE:
        if mac is None or destination is None:
            return None
        return ("fdb", mac), destination if kind == _NEWNEIGH else None
    if destination is None:
        return None
    is_set = kind == _NEWNEIGH and state & _PERMANENT
    return ("neigh", destination), mac if is_set else None


def _is_route(kind: int, data: bytes, start: int) -> bool:
    """Return whether a message is about a route that the kernel would not make by itself."""
    return kind in {_NEWROUTE, _DELROUTE} and data[start + 5] != _KERNEL


def _messages(data: bytes) -> Iterator[tuple[int, int, int]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, offset + _HEADER.size, offset + length
        offset += length + (-length % 4)


@contextlib.contextmanager
def collected() -> Iterator[None]:
    """Keep the collector of cycles out of a measurement: a pass over 60,000 entries takes 10 ms."""
    import gc

    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
