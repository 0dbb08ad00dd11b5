"""Notifications of the kernel: who looks decides; this only says what changed.

One raw rtnetlink socket and one of nfnetlink, in the namespace of the thread
that makes them. Nothing is lost in silence: when a buffer overflows the
answer is ``OVERFLOW``, and whoever listens dumps everything.
"""

import errno
import logging
import select
import socket
import struct
from collections.abc import Iterator
from typing import Final, TypeAlias

from overlay.kernel import messages
from overlay.kernel.links import list_links, names_by_index, parse_link
from overlay.kernel.rtnl import MessageError, RtnlSocket, attributes, decoder, head, split
from overlay.model.kernel import KernelObject, Key, LinkAddress, Verb, VxlanLink
from overlay.model.node import POD_LINK_PREFIX

log = logging.getLogger(__name__)

OVERFLOW: Final = "overflow"
RULESET: Final = "ruleset"  # some table of nftables, ours or not
UNDERLAY: Final = "underlay"  # some link or address
SYSCTL: Final = "sysctl"  # forwarding, for all interfaces at once

# linux/rtnetlink.h, enum rtnetlink_groups.
_GROUPS: Final = (
    *(1, 3),  # links, neighbors and forwarding entries
    *(5, 7, 8, 24),  # IPv4 addresses, routes, rules, settings
    *(9, 11, 19, 25),  # the same for IPv6
)
_NFNLGRP_NFTABLES: Final = 7  # linux/netfilter/nfnetlink.h
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE: Final = 33
_BUFFER: Final = 8 << 20  # bytes
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWNETCONF: Final = 80
_FAMILY_AND_INDEX: Final = struct.Struct("=BxxxI")  # as ndmsg and ifaddrmsg begin
_NETCONFA_IFINDEX: Final = 1
_NETCONFA_IFINDEX_ALL: Final = b"\xff\xff\xff\xff"
_NETLINK_NETFILTER: Final = 12
_AF_BRIDGE: Final = 7
_METRICS: Final = (0, 1024)  # of our routes: IPv4's default, and IPv6's

Change: TypeAlias = tuple[Verb, Key, KernelObject | None]
Notice: TypeAlias = Change | str


class Monitor:
    """Listens from the moment it is made; one thread reads."""

    def __init__(self) -> None:
        self._route = _listen(socket.NETLINK_ROUTE, _GROUPS)
        self._filter = _listen(_NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))
        self.own_port = 0  # netlink port whose changes are not told: those of our own kernel
        self._names: dict[int, str] = {}
        self._learn_names()  # after the sockets listen, so that nothing falls between

    def close(self) -> None:
        """Stop listening."""
        self._route.close()
        self._filter.close()

    def wait(self, timeout_s: float) -> list[Notice]:
        """Return what was told within ``timeout_s``; an empty list when it was nothing."""
        ready, _, _ = select.select([self._route, self._filter], [], [], timeout_s)
        notices: list[Notice] = []
        for source in ready:
            try:
                data = source.recv(1 << 20)
            except OSError as exc:
                if exc.errno not in {errno.ENOBUFS, errno.EAGAIN}:
                    raise
                self._learn_names()  # a new name may be among what was lost
                notices.append(OVERFLOW)
                continue
            if source is self._filter:
                notices.append(RULESET)
            else:
                notices += self._parse(data)
        return notices

    def _learn_names(self) -> None:
        with RtnlSocket() as rtnl:
            self._names = names_by_index(list_links(rtnl))

    def _parse(self, data: bytes) -> Iterator[Notice]:
        """Yield what a datagram tells; OVERFLOW where it cannot be read: something was missed."""
        try:
            for kind, _flags, _sequence, _data, start, end in split(data):
                port = int.from_bytes(data[start - 4 : start], "little")
                if port == 0 or port != self.own_port:  # VXLAN's entries never carry one
                    yield from self._notices(kind, data, start, end)
        except MessageError as exc:
            log.warning("%s", exc)
            yield OVERFLOW

    def _notices(self, kind: int, data: bytes, start: int, end: int) -> Iterator[Notice]:
        verb: Verb = "del" if kind & 1 else "set"
        message = [(data, start, end)]
        if kind in {_RTM_NEWLINK, _RTM_DELLINK}:
            yield from self._link(verb, data, start, end)
        elif kind in {messages.RTM_NEWROUTE, messages.RTM_DELROUTE}:
            yield from self._route_notice(verb, data, start, end)
        elif kind in {messages.RTM_NEWRULE, messages.RTM_DELRULE}:
            yield from ((verb, item.key, item) for item in messages.rules(message))
        elif kind in {messages.RTM_NEWNEIGH, messages.RTM_DELNEIGH}:
            yield from self._neighbor(verb, data, start, end)
        elif kind in {messages.RTM_NEWADDR, messages.RTM_DELADDR}:
            index = _index(data, start, end)
            found = messages.addresses(message, self._names.get(index, ""), index)
            yield from ((verb, item.key, item) for item in found)
            if not self._names.get(index, "").startswith(POD_LINK_PREFIX):
                yield UNDERLAY
        elif kind == _RTM_NEWNETCONF and _is_for_all(data, start, end):
            yield SYSCTL

    def _route_notice(self, verb: Verb, data: bytes, start: int, end: int) -> Iterator[Notice]:
        ours = messages.routes([(data, start, end)], self._names)
        yield from ((verb, item.key, item) for item in ours)
        if not ours and verb == "set":
            # `ip route replace` by somebody else is told as their new route alone.
            prefix, table, metric = messages.route_place(data, start, end)
            if metric in _METRICS:
                yield ("set", ("route", table, prefix, 0), None)

    def _neighbor(self, verb: Verb, data: bytes, start: int, end: int) -> Iterator[Notice]:
        index = _index(data, start, end)
        name = self._names.get(index, "")
        message = [(data, start, end)]
        if _family(data, start, end) == _AF_BRIDGE:
            yield from ((verb, item.key, item) for item in messages.fdb(message, name, index))
            return
        address = messages.neighbor_address(data, start, end)
        if address is None:
            return
        permanent = messages.neighbors(message, name, index)
        # One that is no longer permanent is, for us, one that is gone.
        is_set = verb == "set" and permanent
        key = ("neigh", name, address)
        yield ("set", key, permanent[0]) if is_set else ("del", key, None)

    def _link(self, verb: Verb, data: bytes, start: int, end: int) -> Iterator[Notice]:
        if (
            _family(data, start, end) == _AF_BRIDGE
        ):  # a bridge's word about a port, not about the link
            return
        info = parse_link(data, start, end)
        before = self._names.get(info.index)
        if verb == "del":
            self._names.pop(info.index, None)
        else:
            self._names[info.index] = info.name
        if before is not None and before != info.name:
            yield ("del", ("link", before), None)
        yield (verb, ("link", info.name), info.as_vxlan_link(self._names))
        if not info.name.startswith(POD_LINK_PREFIX):
            yield UNDERLAY


def is_news(notice: Change, mirror: dict[Key, KernelObject]) -> bool:
    """Return whether a change says something else than ``mirror``, which holds what is ours.

    Our own changes come back as notices too; they are in the mirror by then.
    """
    verb, key, item = notice
    known = mirror.get(key)
    if verb == "del":
        return known is not None
    if known is None:
        # Something new on one of our devices, or with our protocol number.
        device = getattr(item, "device", None)
        is_on_ours = device is not None and ("link", device) in mirror
        return isinstance(item, VxlanLink) or (is_on_ours and not _is_passing(item))
    return known != item


def _is_passing(item: KernelObject | None) -> bool:
    return isinstance(item, LinkAddress) and item.address.ip.is_link_local


@decoder
def _index(data: bytes, start: int, end: int) -> int:
    """Return the interface index of a neighbor or address message."""
    return int(head(_FAMILY_AND_INDEX, data, start, end)[1])


@decoder
def _family(data: bytes, start: int, end: int) -> int:
    """Return the address family that every message but one about settings begins with."""
    return int(head(_FAMILY_AND_INDEX, data, start, end)[0])


@decoder
def _is_for_all(data: bytes, start: int, end: int) -> bool:
    """Return whether a message about settings is about those for all interfaces at once."""
    return attributes(data, start + 4, end).get(_NETCONFA_IFINDEX) == _NETCONFA_IFINDEX_ALL


def _listen(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    listener.bind((0, 0))
    for group in groups:
        listener.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    listener.settimeout(0)
    return listener
