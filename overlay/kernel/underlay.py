"""Finding the interface that carries the fabric, by flannel's flags and rules."""

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from typing import Final

from overlay.kernel.links import LinkInfo, list_links
from overlay.kernel.messages import AF, RTM_GETADDR, RTM_GETROUTE
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.wire import attribute, attributes, decoder, head
from overlay.model.address import FAMILIES, Family, IPAddress, IPInterface, family_of
from overlay.model.errors import UsageError
from overlay.model.node import Underlay
from overlay.plan.backend import UnderlayError

_IFADDRMSG: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_PRIORITY = 1, 4, 6
_RT_TABLE_MAIN: Final = 254
# Temporary, deprecated and tentative addresses come and go (linux/if_addr.h).
_PASSING: Final = 0x01 | 0x20 | 0x40


@dataclass(frozen=True, slots=True)
class UnderlayFlags:
    """The flags that choose the underlay; flannel's names and meaning."""

    iface: Sequence[str] = ()  # names or addresses, the first that exists wins
    iface_regex: Sequence[str] = ()
    iface_can_reach: str = ""
    public_ip: IPAddress | None = None
    public_ipv6: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class _Interface:
    link: LinkInfo
    addresses: Sequence[IPInterface] = field(default_factory=tuple)

    def __str__(self) -> str:
        shown = ", ".join(str(a) for a in self.addresses) or "no address"
        return f"{self.link.name} ({shown})"


def find_underlay(flags: UnderlayFlags, families: Iterable[Family]) -> Underlay:
    """Return the interface that ``flags`` choose, with an address for each of ``families``.

    Without flags it is the one that the default route leaves by. Raises
    UnderlayError naming the flag, what there is, and the way out.
    """
    with RtnlSocket() as rtnl:
        interfaces = _list_interfaces(rtnl)
        chosen = _choose(rtnl, flags, interfaces)
    if not chosen.link.is_up:
        msg = (
            f"underlay {chosen.link.name} is down; `ip link set {chosen.link.name} up`, "
            "or choose another with --iface"
        )
        raise UnderlayError(msg)
    local: dict[Family, IPInterface] = {}
    public: dict[Family, IPAddress] = {}
    asked = {Family.IPV4: flags.public_ip, Family.IPV6: flags.public_ipv6}
    for family in families:
        own = _own_address(chosen, family, asked[family], flags.iface)
        if own is None:
            shown = ", ".join(str(i) for i in interfaces.values())
            msg = (
                f"underlay {chosen.link.name} has no {family} address that lasts; give it one, "
                f"or choose another interface with --iface; there are {shown}"
            )
            raise UnderlayError(msg)
        local[family] = own
        public[family] = asked[family] or own.ip
    return Underlay(chosen.link.name, chosen.link.mtu, local, public)


def _choose(
    rtnl: RtnlSocket, flags: UnderlayFlags, interfaces: Mapping[str, _Interface]
) -> _Interface:
    shown = ", ".join(str(i) for i in interfaces.values())
    for name in flags.iface:
        found = interfaces.get(name) or _by_address(name, interfaces)
        if found is not None:
            return found
    for pattern in flags.iface_regex:
        found = _by_pattern(pattern, interfaces)
        if found is not None:
            return found
    if flags.iface or flags.iface_regex:
        asked = [f"--iface {n}" for n in flags.iface]
        asked += [f"--iface-regex {p}" for p in flags.iface_regex]
        msg = f"{' '.join(asked)}: no such interface; there are {shown}"
        raise UnderlayError(msg)
    by_index = {i.link.index: i for i in interfaces.values()}
    if flags.iface_can_reach:
        found = by_index.get(_towards(rtnl, flags.iface_can_reach))
        if found is None:
            msg = f"--iface-can-reach {flags.iface_can_reach}: no route leads there"
            raise UnderlayError(msg)
        return found
    for family in FAMILIES:
        found = by_index.get(_default_route(rtnl, family))
        if found is not None:
            return found
    msg = f"no default route tells the underlay; name it with --iface; there are {shown}"
    raise UnderlayError(msg)


def _own_address(
    interface: _Interface, family: Family, asked: IPAddress | None, names: Sequence[str]
) -> IPInterface | None:
    """Return the address to send from: the public one or the one named, if here, else the first."""
    candidates = [a for a in interface.addresses if family_of(a) is family]
    for candidate in candidates:
        if candidate.ip == asked or str(candidate.ip) in names:
            return candidate
    return candidates[0] if candidates else None


def _by_address(text: str, interfaces: Mapping[str, _Interface]) -> _Interface | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    for interface in interfaces.values():
        if any(a.ip == address for a in interface.addresses):
            return interface
    return None


def _by_pattern(pattern: str, interfaces: Mapping[str, _Interface]) -> _Interface | None:
    try:
        compiled = re.compile(pattern)
    except re.error as exc:
        msg = f"--iface-regex {pattern!r}: {exc}"
        raise UsageError(msg) from exc
    for interface in interfaces.values():
        texts = [interface.link.name, *(str(a.ip) for a in interface.addresses)]
        if any(compiled.search(text) for text in texts):
            return interface
    return None


@decoder
def _list_interfaces(rtnl: RtnlSocket) -> dict[str, _Interface]:
    """Return every interface but the loopback and our own devices, with lasting addresses."""
    found: dict[int, list[IPInterface]] = {}
    for data, start, end in rtnl.dump(RTM_GETADDR, _IFADDRMSG.pack(0, 0, 0, 0, 0)):
        _family, length, flags, _scope, index = head(_IFADDRMSG, data, start, end)
        parts = attributes(data, start + 8, end)
        packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
        if _IFA_FLAGS in parts:
            flags = int.from_bytes(parts[_IFA_FLAGS], "little")
        if packed is None or flags & _PASSING & ~(0x01 if len(packed) == 4 else 0):
            continue  # for IPv4, bit 0 means "secondary", which is no fault
        address = ip_address(packed)
        if not (address.is_link_local or address.is_loopback):
            found.setdefault(index, []).append(ip_interface((address, length)))
    return {
        link.name: _Interface(link, tuple(found.get(link.index, ())))
        for link in list_links(rtnl).values()
        if link.name != "lo" and not link.is_ours()
    }


@decoder
def _towards(rtnl: RtnlSocket, text: str) -> int:
    try:
        address = ip_address(text)
    except ValueError as exc:
        msg = f"--iface-can-reach: {exc}"
        raise UsageError(msg) from exc
    family = family_of(address)
    body = _RTMSG.pack(AF[family], family.bits, 0, 0, 0, 0, 0, 0, 0)
    answer = rtnl.ask(RTM_GETROUTE, body + attribute(_RTA_DST, address.packed))
    if answer is None:
        return 0
    data, start, end = answer
    return int.from_bytes(attributes(data, start + 12, end).get(_RTA_OIF, b""), "little")


@decoder
def _default_route(rtnl: RtnlSocket, family: Family) -> int:
    """Return the interface index of the best default route, 0 where there is none."""
    best = (1 << 32, 0)
    body = _RTMSG.pack(AF[family], 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0)
    for data, start, end in rtnl.dump(RTM_GETROUTE, body):
        if head(_RTMSG, data, start, end)[1] != 0:
            continue
        parts = attributes(data, start + 12, end)
        metric = int.from_bytes(parts.get(_RTA_PRIORITY, b""), "little")
        index = int.from_bytes(parts.get(_RTA_OIF, b""), "little")
        if index:
            best = min(best, (metric, index))
    return best[1]
