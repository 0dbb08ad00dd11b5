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
from dataclasses import replace
from typing import Final

from overlay.kernel import messages, parse
from overlay.kernel.echoes import Echoes
from overlay.kernel.links import list_links, names_by_index, parse_link
from overlay.kernel.nft_notices import RulesetNotices
from overlay.kernel.notices import (
    OVERFLOW,
    SYSCTL,
    UNDERLAY,
    Change,
    Notice,
    probable_maker,
)
from overlay.kernel.pod_notices import PodLinks
from overlay.kernel.rtnl import LONGEST, RtnlSocket
from overlay.kernel.wire import MessageError, attributes, decoder, head, split
from overlay.model.kernel import LinkAddress, Verb
from overlay.model.node import POD_BRIDGE, POD_LINK_PREFIX, is_vtep_device

log = logging.getLogger(__name__)

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
_AT_A_TIME: Final = 64  # datagrams, before somebody hears of them
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWNETCONF: Final = 80
_FAMILY_AND_INDEX: Final = struct.Struct("=BxxxI")  # as ndmsg and ifaddrmsg begin
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING = 1, 2  # linux/netconf.h
_ALL: Final = 0xFFFFFFFF  # NETCONFA_IFINDEX_ALL
_NETLINK_NETFILTER: Final = 12
_AF_BRIDGE: Final = 7
_METRICS: Final = (0, 1024)  # of our routes: IPv4's default, and IPv6's


class Monitor:
    """Listens from the moment it is made; one thread reads."""

    def __init__(self) -> None:
        self._route = _listen(socket.NETLINK_ROUTE, _GROUPS)
        self._filter = _listen(_NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))
        self._rulesets = RulesetNotices()
        self.own: Echoes | None = None  # what is not told: changes by our own kernel
        self._names: dict[int, str] = {}
        self._up: dict[int, bool] = {}
        self._pods = PodLinks()
        self._addresses: set[LinkAddress] = set()  # seen lately, on links that are not pods'
        self._last_maker = (0, "")  # of the last port; most notices in a row have one
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
            read = self._rulesets.read if source is self._filter else self._parse
            try:
                for _ in range(_AT_A_TIME):
                    notices += read(source.recv(LONGEST))
            except BlockingIOError:
                continue
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self._learn_names()  # a new name may be among what was lost
                self._rulesets.lose()
                notices.append(OVERFLOW)
        return notices

    def _learn_names(self) -> None:
        with RtnlSocket() as rtnl:
            links = list_links(rtnl)
        self._names = names_by_index(links)
        self._pods.learn(self._names)
        self._up = {link.index: link.is_up for link in links.values()}

    def _parse(self, data: bytes) -> Iterator[Notice]:
        """Yield what a datagram tells; OVERFLOW where it cannot be read: something was missed."""
        if self.own is not None and self.own.takes(data):
            return
        try:
            for kind, _flags, _sequence, _data, start, end in split(data):
                port = int.from_bytes(data[start - 4 : start], "little")
                if not self._pods.takes(kind, data, start, end, self._names):
                    by = self._maker(port)
                    for notice in self._notices(kind, data, start, end):
                        yield replace(notice, by=by) if isinstance(notice, Change) else notice
        except MessageError as exc:
            log.warning("%s", exc)
            yield OVERFLOW

    def _maker(self, port: int) -> str:
        if port != self._last_maker[0]:
            # At once: a program like `ip` ends within a millisecond.
            self._last_maker = (port, probable_maker(port))
        return self._last_maker[1]

    def _notices(self, kind: int, data: bytes, start: int, end: int) -> Iterator[Notice]:
        verb: Verb = "del" if kind & 1 else "set"
        message = [(data, start, end)]
        if kind in {_RTM_NEWLINK, _RTM_DELLINK}:
            yield from self._link(verb, data, start, end)
        elif kind in {messages.RTM_NEWROUTE, messages.RTM_DELROUTE}:
            yield from self._route_notice(verb, data, start, end)
        elif kind in {messages.RTM_NEWRULE, messages.RTM_DELRULE}:
            yield from (Change(verb, item.key, item) for item in parse.rules(message))
        elif kind in {messages.RTM_NEWNEIGH, messages.RTM_DELNEIGH}:
            yield from self._neighbor(verb, data, start, end)
        elif kind in {messages.RTM_NEWADDR, messages.RTM_DELADDR}:
            yield from self._address(verb, data, start, end)
        elif kind == _RTM_NEWNETCONF:
            index = _stopped_forwarding(data, start, end)
            name = self._names.get(index, "")
            if index == _ALL or is_vtep_device(name):
                yield SYSCTL
            elif name and not name.startswith(POD_LINK_PREFIX):
                yield Change("del", ("forwarding", name))  # the underlay's, perhaps

    def _address(self, verb: Verb, data: bytes, start: int, end: int) -> Iterator[Notice]:
        index = _index(data, start, end)
        name = self._names.get(index, "")
        found = parse.addresses([(data, start, end)], name, index)
        yield from (Change(verb, item.key, item) for item in found)
        if name.startswith(POD_LINK_PREFIX):
            return
        yield UNDERLAY
        for item in found:
            # A router's advertisement tells known addresses again and again.
            if verb == "del" or item not in self._addresses:
                yield Change("set", ("device", name))
            (self._addresses.add if verb == "set" else self._addresses.discard)(item)

    def _route_notice(self, verb: Verb, data: bytes, start: int, end: int) -> Iterator[Notice]:
        ours = parse.routes([(data, start, end)], self._names)
        yield from (Change(verb, item.key, item) for item in ours)
        if not ours and verb == "set":
            # `ip route replace` by somebody else is told as their new route alone.
            foreign = parse.foreign_route(data, start, end, self._names)
            if foreign is not None:
                yield Change("set", foreign.key, foreign)
                return
            prefix, table, metric = parse.route_place(data, start, end)
            if metric in _METRICS:
                yield Change("set", ("route", table, prefix, 0))

    def _neighbor(self, verb: Verb, data: bytes, start: int, end: int) -> Iterator[Notice]:
        index = _index(data, start, end)
        name = self._names.get(index, "")
        message = [(data, start, end)]
        if _family(data, start, end) == _AF_BRIDGE:
            yield from (Change(verb, x.key, x) for x in parse.fdb(message, name, index))
            return
        address = parse.neighbor_address(data, start, end)
        if address is None:
            return
        permanent = parse.neighbors(message, name, index)
        # One that is no longer permanent is, for us, one that is gone.
        is_set = verb == "set" and permanent
        key = ("neigh", name, address)
        yield Change("set", key, permanent[0]) if is_set else Change("del", key)

    def _link(self, verb: Verb, data: bytes, start: int, end: int) -> Iterator[Notice]:
        if _family(data, start, end) == _AF_BRIDGE:
            return  # a bridge's word about a port, not about the link
        info = parse_link(data, start, end)
        before, was_up = self._names.get(info.index), self._up.get(info.index)
        if verb == "del":
            self._names.pop(info.index, None)
            self._up.pop(info.index, None)
        else:
            self._names[info.index] = info.name
            self._up[info.index] = info.is_up
        if before is not None and before != info.name:
            yield Change("del", ("link", before))
        if info.name == POD_BRIDGE and not info.is_up:
            verb = "del"  # one that is down is, for us, one that is gone
        yield Change(verb, ("link", info.name), info.as_vxlan_link(self._names))
        if verb == "del" or (before, was_up) != (info.name, info.is_up):
            yield Change(verb, ("device", info.name))
        if not info.name.startswith(POD_LINK_PREFIX):
            yield UNDERLAY


@decoder
def _index(data: bytes, start: int, end: int) -> int:
    """Return the interface index of a neighbor or address message."""
    return int(head(_FAMILY_AND_INDEX, data, start, end)[1])


@decoder
def _family(data: bytes, start: int, end: int) -> int:
    """Return the address family that every message but one about settings begins with."""
    return int(head(_FAMILY_AND_INDEX, data, start, end)[0])


@decoder
def _stopped_forwarding(data: bytes, start: int, end: int) -> int:
    """Return the index of the interface that forwards no more, _ALL, or 0 for other news."""
    parts = attributes(data, start + 4, end)
    if any(parts.get(_NETCONFA_FORWARDING, b"\1")):
        return 0
    return int.from_bytes(parts.get(_NETCONFA_IFINDEX, b""), "little")


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
