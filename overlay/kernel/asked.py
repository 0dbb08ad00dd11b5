"""One question at a time to rtnetlink: which way, which neighbor, which forwarding entry.

Layouts: linux/rtnetlink.h (rtmsg), linux/neighbour.h (ndmsg).
"""

import errno
import os
import struct
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Final

from overlay.kernel import messages, parse
from overlay.kernel.answers import Refusal
from overlay.kernel.asked_rules import deciding_rule
from overlay.kernel.links import LinkInfo, list_links, names_by_index
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.wire import attribute, attributes, decoder, head
from overlay.model.address import Family, IPAddress, family_of
from overlay.model.kernel import MAIN_TABLE, NODE_TABLE
from overlay.policy.verdict import Packet
from overlay.trace.facts import Hop, LinkFact, NeighborFact, NeighborState, RouteFact

_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_NDMSG: Final = struct.Struct("=BBHiHBB")
_U32: Final = struct.Struct("=I")
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY = 1, 2, 3, 4, 5
_RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 6, 7, 8, 15
_RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT = 27, 28, 29
_RTAX_MTU: Final = 2
_RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x1000, 0x2000
# IPv6 says its table unasked, and refuses to be asked (net/ipv6/route.c).
_MATCHED: Final = {
    Family.IPV4: _RTM_F_LOOKUP_TABLE | _RTM_F_FIB_MATCH,
    Family.IPV6: _RTM_F_FIB_MATCH,
}
_NDA_DST, _NDA_LLADDR = 1, 2
_KINDS: Final = {
    1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole",
    7: "unreachable", 8: "prohibit",
}  # fmt: skip
_STATES: Final[Mapping[int, NeighborState]] = {
    0x01: "incomplete", 0x02: "reachable", 0x04: "stale", 0x08: "delay", 0x10: "probe",
    0x20: "failed", 0x40: "noarp", 0x80: "permanent",
}  # fmt: skip
_LOCAL_TABLE: Final = 255
_USUAL_TABLES: Final = frozenset({0, MAIN_TABLE, _LOCAL_TABLE, NODE_TABLE})


class Ground:
    """One network namespace, looked at through a socket inside it. One thread uses it.

    Links are read once: an answer is about one moment. ``is_bound`` says that
    programs in it send from the packet's own source, as those in a pod do.
    """

    def __init__(self, rtnl: RtnlSocket, *, is_bound: bool = False) -> None:
        self.rtnl = rtnl
        self.is_bound = is_bound
        self.links: Mapping[str, LinkInfo] = list_links(rtnl)
        self._names = names_by_index(self.links)

    def link(self, name: str) -> LinkFact | None:
        """Return an interface, None where there is none of that name."""
        info = self.links.get(name)
        if info is None:
            return None
        vxlan = info.vxlan
        return LinkFact(
            name=name,
            mtu=info.mtu,
            mac=info.mac,
            is_up=info.is_up,
            has_carrier=info.has_carrier,
            vni=vxlan.vni if vxlan else 0,
            port=vxlan.port if vxlan else 0,
            local=vxlan.local if vxlan else None,
            lower=self._names.get(vxlan.lower, "") if vxlan else "",
            is_ours=info.is_ours(),
        )

    def hop(self, packet: Packet, *, is_local: bool = False) -> Hop:
        """Return the routing decision for ``packet``, and what it leads to.

        It is that for a packet which came in by ``packet.iif``, or with
        ``is_local`` for one that a program of this namespace sends.
        """
        route = self.route(packet, is_local=is_local)
        cover = None
        rule = None
        if not route.is_way:
            cover = self.cover(packet.destination)
            rule = deciding_rule(self.rtnl, packet, None, is_local=is_local)
        elif route.table not in _USUAL_TABLES:
            rule = deciding_rule(self.rtnl, packet, route.table, is_local=is_local)
        if route.kind != "unicast":
            return Hop(packet.destination, route, self.link(route.device), None, cover, rule)
        neighbor = self.neighbor(route.device, route.gateway or packet.destination)
        return Hop(packet.destination, route, self.link(route.device), neighbor, cover, rule)

    def route(self, packet: Packet, *, is_local: bool = False) -> RouteFact:
        """Return what ``ip route get DST from SRC iif IIF ipproto P dport N`` says."""
        body = self._question(packet, is_local=is_local, flags=0)
        answer = self.rtnl.question(messages.RTM_GETROUTE, body)
        if isinstance(answer, Refusal):
            return RouteFact("refused", error=_refusal(answer.errno))
        found = route_fact(answer, self._names)
        flags = _MATCHED[packet.family]
        matched = self.rtnl.question(
            messages.RTM_GETROUTE, self._question(packet, is_local=is_local, flags=flags)
        )
        if isinstance(matched, Refusal):
            return found
        exact = route_fact(matched, self._names)
        return RouteFact(
            kind=found.kind,
            prefix=exact.prefix,
            table=exact.table,
            device=found.device,
            gateway=found.gateway,
            source=found.source,
            protocol=exact.protocol,
            mtu=found.mtu or exact.mtu,
            metric=exact.metric,
        )

    def cover(self, address: IPAddress) -> RouteFact | None:
        """Return the most specific route for ``address`` of any table but that for local ones."""
        family = family_of(address)
        body = _RTMSG.pack(messages.AF[family], 0, 0, 0, 0, 0, 0, 0, 0)
        best: RouteFact | None = None
        for message in self.rtnl.dump(messages.RTM_GETROUTE, body):
            found = route_fact(message, self._names)
            if found.prefix is None or address not in found.prefix or found.table == _LOCAL_TABLE:
                continue
            if best is None or best.prefix is None or _better(found, best):
                best = found
        return best

    def addresses(self) -> tuple[IPAddress, ...]:
        """Return every address of the namespace."""
        found = []
        for info in self.links.values():
            answer = self.rtnl.dump(messages.RTM_GETADDR, messages.addresses_request(info.index))
            found += [a.address.ip for a in parse.addresses(answer, info.name, info.index)]
        return tuple(found)

    def device_towards(self, address: IPAddress) -> str | None:
        """Return the device that the route to ``address`` names, None where there is no route."""
        route = self.route(Packet(address, address), is_local=True)
        return route.device if route.is_way else None

    def neighbor(self, device: str, address: IPAddress) -> NeighborFact:
        """Return what ``device`` knows of ``address``."""
        info = self.links.get(device)
        if info is None:
            return NeighborFact(address)
        body = _NDMSG.pack(messages.AF[family_of(address)], 0, 0, info.index, 0, 0, 0)
        answer = self.rtnl.question(
            messages.RTM_GETNEIGH, body + attribute(_NDA_DST, address.packed)
        )
        if isinstance(answer, Refusal):
            return NeighborFact(address)
        return _neighbor_fact(address, *answer)

    def forwarding(self, device: str, mac: str) -> tuple[IPAddress, ...]:
        """Return where a VXLAN device sends what is for ``mac``: ``bridge fdb show dev DEVICE``."""
        info = self.links.get(device)
        if info is None or not mac:
            return ()
        answer = self.rtnl.dump(messages.RTM_GETNEIGH, messages.fdb_request(info.index))
        entries = parse.fdb(answer, device, info.index)
        return tuple(e.destination for e in entries if e.mac == mac)

    def has_rule(self, address: IPAddress) -> bool:
        """Return whether a rule of ours leads packets from ``address`` to the table for nodes."""
        family = family_of(address)
        answer = self.rtnl.dump(messages.RTM_GETRULE, messages.rules_request(family))
        return any(address in rule.source for rule in parse.rules(answer))

    def _question(self, packet: Packet, *, is_local: bool, flags: int) -> bytes:
        family = packet.family
        # A program that has not bound itself lets the route choose its address.
        is_bound = not is_local or self.is_bound
        body = _RTMSG.pack(
            messages.AF[family], family.bits, family.bits if is_bound else 0, 0, 0, 0, 0, 0, flags
        )
        body += attribute(_RTA_DST, packet.destination.packed)
        if is_bound:
            body += attribute(_RTA_SRC, packet.source.packed)
        if not is_local:
            body += attribute(_RTA_IIF, _U32.pack(self.links[packet.iif].index))
        body += attribute(_RTA_IP_PROTO, bytes((packet.protocol_number,)))
        for kind, port in ((_RTA_SPORT, packet.source_port), (_RTA_DPORT, packet.port)):
            if port is not None and packet.protocol in {"tcp", "udp"}:
                body += attribute(kind, port.to_bytes(2, "big"))
        return body


@decoder
def route_fact(message: tuple[bytes, int, int], names: Mapping[int, str]) -> RouteFact:
    """Return any route, from a dump or an answer. Raises MessageError."""
    data, start, end = message
    family, length, _s, _t, table, protocol, _sc, kind, _flags = head(_RTMSG, data, start, end)
    parts = attributes(data, start + 12, end)
    packed = parts.get(_RTA_DST, bytes(4 if family == messages.AF[Family.IPV4] else 16))
    gateway, source = parts.get(_RTA_GATEWAY), parts.get(_RTA_PREFSRC)
    number = _u32(parts.get(_RTA_OIF))
    metrics = parts.get(_RTA_METRICS, b"")
    return RouteFact(
        kind=_KINDS.get(kind, f"type {kind}"),
        prefix=ip_network((packed, length)),
        table=_u32(parts.get(_RTA_TABLE)) or table,
        device=names.get(number, f"#{number}") if number else "",
        gateway=ip_address(gateway) if gateway is not None else None,
        source=ip_address(source) if source is not None else None,
        protocol=protocol,
        mtu=_u32(attributes(metrics, 0, len(metrics)).get(_RTAX_MTU)),
        metric=_u32(parts.get(_RTA_PRIORITY)),
    )


@decoder
def _neighbor_fact(address: IPAddress, data: bytes, start: int, end: int) -> NeighborFact:
    _family, _p, _q, _index, state, _flags, _type = head(_NDMSG, data, start, end)
    mac = attributes(data, start + 12, end).get(_NDA_LLADDR, b"")
    return NeighborFact(address, _STATES.get(state, "none"), mac.hex(":") if mac else "")


def _better(one: RouteFact, other: RouteFact) -> bool:
    assert one.prefix is not None and other.prefix is not None  # noqa: S101, PT018 - by cover
    if one.prefix.prefixlen != other.prefix.prefixlen:
        return one.prefix.prefixlen > other.prefix.prefixlen
    return one.metric < other.metric


def _refusal(number: int) -> str:
    """Return what the kernel means by refusing a way (net/ipv4/route.c, fib_frontend.c)."""
    meaning = {
        errno.EXDEV: "the reverse path filter (rp_filter) drops it",
        errno.EINVAL: "the source or destination is not valid here (martian)",
        errno.EHOSTUNREACH: "no way to the host",
        errno.ENETUNREACH: "no route",
        errno.EACCES: "prohibited by a route",
    }
    return meaning.get(number, os.strerror(number))


def _u32(value: bytes | None) -> int:
    return int.from_bytes(value, "little") if value else 0
