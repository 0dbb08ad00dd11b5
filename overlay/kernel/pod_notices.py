"""What the kernel tells of the pods' own links, told from what the fabric stands on.

Each ADD and DEL makes a dozen notices that nobody acts on: to take them apart
cost the agent as much processor time as the ADD itself (November 2026). So they
are known by a few bytes at places that the kernel keeps: linux/rtnetlink.h, and
the order of ``rtnl_fill_ifinfo`` and ``fib_dump_info``.
"""

import struct
from collections.abc import Mapping, MutableMapping
from typing import Final

from overlay.model.kernel import POD_ROUTE_PROTOCOL, ROUTE_PROTOCOL
from overlay.model.node import POD_BRIDGE, POD_LINK_PREFIX

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_BY_LINK: Final = frozenset((20, 21, 28, 29))  # addresses and neighbors, new and gone
_ROUTES: Final = frozenset((24, 25))
_RTM_DELNETCONF: Final = 81
_HEAD: Final = 12  # bytes: the least that any of these begins with
_MAIN_TABLE, _LOCAL_TABLE = 254, 255
_HOST: Final = {2: 32, 10: 128}  # bits of an address by AF_INET, AF_INET6
_AF_UNSPEC: Final = 0
_INDEX: Final = struct.Struct("=I")
_NAMED: Final = struct.pack("=H", 3)  # IFLA_IFNAME, the first attribute of a link
_POD: Final = _NAMED + POD_LINK_PREFIX.encode()
_BRIDGE: Final = _NAMED + POD_BRIDGE.encode() + b"\0"
_LENGTH_AT, _KIND_AT, _NAME_AT = 16, 18, 20  # in a link message


class PodLinks:
    """The indexes of the pods' links, learnt from what is told of them. One thread uses it."""

    def __init__(self) -> None:
        self._indexes: set[bytes] = set()

    def learn(self, names: Mapping[int, str]) -> None:
        """Take over what a dump says: ``names`` by index."""
        self._indexes = {_INDEX.pack(index) for index, name in names.items() if _is_pods(name)}

    def takes(
        self, kind: int, data: bytes, start: int, end: int, names: MutableMapping[int, str]
    ) -> bool:
        """Return whether a message is about a pod's link alone, and keep ``names`` in step.

        False for all that is not surely so, however damaged it is.
        """
        if end - start < _HEAD:
            return False
        if kind in _BY_LINK:
            return data[start + 4 : start + 8] in self._indexes
        if kind in _ROUTES:
            return _is_passing(data, start)
        if kind in {_RTM_NEWLINK, _RTM_DELLINK}:
            return self._link(kind, data, start, end, names)
        return kind == _RTM_DELNETCONF  # an interface that is gone is told of by its link

    def _link(
        self, kind: int, data: bytes, start: int, end: int, names: MutableMapping[int, str]
    ) -> bool:
        index = data[start + 4 : start + 8]
        if (
            data[start] != _AF_UNSPEC
            or not data.startswith(_POD, start + _KIND_AT)
            or data.startswith(_BRIDGE, start + _KIND_AT)
        ):
            self._indexes.discard(index)
            return False
        length = int.from_bytes(data[start + _LENGTH_AT : start + _KIND_AT], "little")
        if start + _LENGTH_AT + length > end:
            return False
        number: int = _INDEX.unpack(index)[0]
        name = data[start + _NAME_AT : start + _LENGTH_AT + length].rstrip(b"\0")
        is_known = _is_pods(names.get(number, POD_LINK_PREFIX))  # it may have had another name
        if kind == _RTM_DELLINK:
            self._indexes.discard(index)
        else:
            self._indexes.add(index)
        if is_known and kind == _RTM_DELLINK:
            names.pop(number, None)
        elif is_known:
            names[number] = name.decode(errors="replace")
        return is_known


def _is_pods(name: str) -> bool:
    return name.startswith(POD_LINK_PREFIX) and name != POD_BRIDGE


def _is_passing(data: bytes, start: int) -> bool:
    """Return whether a route is a pod's own, or one that comes with an address of any link."""
    length, table, protocol = data[start + 1], data[start + 4], data[start + 5]
    if table == _LOCAL_TABLE:
        return protocol != ROUTE_PROTOCOL
    is_pods = table == _MAIN_TABLE and protocol == POD_ROUTE_PROTOCOL
    return is_pods and length == _HOST.get(data[start])
