"""VXLAN devices: listed and made by hand, taken apart and rebuilt through pyroute2.

Layouts: linux/if_link.h (ifinfomsg, IFLA_*, IFLA_VXLAN_*).
"""

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Final

from overlay.kernel import link_requests as asked
from overlay.kernel.rtnl import Request, RtnlSocket
from overlay.kernel.wire import attributes, decoder, head
from overlay.model.address import Family, IPAddress, MacAddress, family_of
from overlay.model.kernel import LINK_ALIAS, VxlanLink

if TYPE_CHECKING:
    from pyroute2 import IPRoute

log = logging.getLogger(__name__)

_IFF_LOWER_UP: Final = 1 << 16
_MASTER: Final = 10
_GROUP: Final = 27  # IFLA_GROUP
_IPV6_MIN_MTU: Final = 1280  # bytes (RFC 8200, section 5)
_FLANNEL: Final = "flannel"


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The part of a link that only VXLAN devices have. ``local`` is None where any will do."""

    vni: int
    port: int
    local: IPAddress | None
    lower: int  # interface index of the underlay, 0 where any will do
    learning: bool
    gbp: bool


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """One interface of the namespace, as far as we look at it."""

    index: int
    name: str
    is_up: bool
    mtu: int  # bytes
    mac: str
    alias: str
    vxlan: Vxlan | None
    kind: str = ""  # as `ip -d link` names it
    master: int = 0  # interface index of the bridge it is a port of
    has_carrier: bool = False
    group: int = 0

    def is_ours(self) -> bool:
        """Return whether the alias says that we made it."""
        return self.vxlan is not None and self.alias == LINK_ALIAS

    def could_be(self, link: VxlanLink) -> bool:
        """Return whether this is ``link``, or was before something about it changed.

        By the alias; or, for one that was made but not yet marked when its
        maker died, by name, VNI and our own MAC address.
        """
        vxlan = self.vxlan
        if vxlan is None or not (vxlan.vni == link.vni and _same_family(vxlan, link)):
            return self.is_ours() and self.name == link.name
        return self.is_ours() or (self.name == link.name and self.mac == link.mac)

    def as_vxlan_link(self, names: Mapping[int, str]) -> VxlanLink | None:
        """Return the device as a kernel object, None when it is no VXLAN device of ours."""
        vxlan = self.vxlan
        if vxlan is None or not self.is_ours():
            return None
        return VxlanLink(
            name=self.name,
            vni=vxlan.vni,
            port=vxlan.port,
            mac=MacAddress(self.mac),
            mtu=self.mtu,
            local=vxlan.local or IPv4Address(0),
            underlay=names.get(vxlan.lower, ""),
            gbp=vxlan.gbp,
            # A learning device is not what we want: shown as down, it is set right.
            is_up=self.is_up and not vxlan.learning,
        )


def list_links(rtnl: RtnlSocket) -> dict[str, LinkInfo]:
    """Return every interface of the namespace by name."""
    links = (
        parse_link(*message)
        for message in rtnl.dump(asked.RTM_GETLINK, asked.IFINFOMSG.pack(0, 0, 0, 0, 0, 0))
    )
    return {link.name: link for link in links}


@decoder
def parse_link(data: bytes, start: int, end: int) -> LinkInfo:
    """Return the interface that one link message describes. Raises MessageError."""
    _family, _pad, _type, index, flags, _change = head(asked.IFINFOMSG, data, start, end)
    parts = attributes(data, start + 16, end)
    nested = parts.get(asked.LINKINFO, b"")
    info = attributes(nested, 0, len(nested))
    return LinkInfo(
        index=index,
        name=_text(parts.get(asked.IFNAME)),
        is_up=bool(flags & asked.IFF_UP),
        mtu=_u32(parts.get(asked.MTU)),
        mac=parts.get(asked.ADDRESS, b"").hex(":") if parts.get(asked.ADDRESS) else "",
        alias=_text(parts.get(asked.IFALIAS)),
        vxlan=_parse_vxlan(info),
        kind=_text(info.get(asked.INFO_KIND)),
        master=_u32(parts.get(_MASTER)),
        has_carrier=bool(flags & _IFF_LOWER_UP),
        group=_u32(parts.get(_GROUP)),
    )


def _parse_vxlan(info: Mapping[int, bytes]) -> Vxlan | None:
    if _text(info.get(asked.INFO_KIND)) != "vxlan":
        return None
    payload = info.get(asked.INFO_DATA, b"")
    data = attributes(payload, 0, len(payload))
    local: IPAddress | None = None
    if any(data.get(asked.LOCAL, b"")):
        local = IPv4Address(data[asked.LOCAL])
    elif any(data.get(asked.LOCAL6, b"")):
        local = IPv6Address(data[asked.LOCAL6])
    return Vxlan(
        vni=_u32(data.get(asked.ID)),
        port=int.from_bytes(data.get(asked.PORT, b""), "big"),
        local=local,
        lower=_u32(data.get(asked.LOWER)),
        learning=data.get(asked.LEARNING, b"\0") != b"\0",
        gbp=asked.GBP in data,
    )


class LinkConflictError(Exception):
    """A device that is not ours stands in the way; the text says which, and the way out."""


class LinkWriter:
    """Makes, changes and removes VXLAN devices. Holds sockets of its own while it lives.

    What a join or a repair needs is packed by hand; what is rare goes through pyroute2.
    With ``replaces_flannel`` a device of flannel's that has our VNI and port gives
    way: the kernel takes one of them.
    """

    def __init__(self, *, replaces_flannel: bool = False) -> None:
        self._replaces_flannel = replaces_flannel
        self._rtnl: RtnlSocket | None = None
        self._ipr: IPRoute | None = None

    def close(self) -> None:
        """Close the sockets, if any were needed."""
        if self._rtnl is not None:
            self._rtnl.close()
            self._rtnl = None
        if self._ipr is not None:
            self._ipr.close()
            self._ipr = None

    def set(self, link: VxlanLink, links: Mapping[str, LinkInfo]) -> None:
        """Make ``link``, or change what is there into it. Repeating it is safe.

        VNI, port, family and GBP of a device cannot be changed: it is made
        anew then, and what was on it must be set again. Raises
        LinkConflictError, and OSError with the kernel's own words.
        """
        underlay = links.get(link.underlay)
        if underlay is None:
            raise OSError(errno.ENODEV, f"underlay interface {link.underlay} does not exist")
        conflict = find_conflict(link, links, replaces_flannel=self._replaces_flannel)
        if conflict is not None:
            raise LinkConflictError(conflict)
        for rival in links.values():
            if self._replaces_flannel and _is_flannels(rival) and _takes_vni(rival, link):
                log.warning("flannel's device %s gives way to %s", rival.name, link.name)
                self._link("del", index=rival.index)
        found = links.get(link.name)
        twin = found or next(
            (o for o in links.values() if o.is_ours() and o.could_be(link) and _same_port(o, link)),
            None,
        )
        if twin is not None and not _is_changeable(twin, link):
            self._link("del", index=twin.index)
            twin = None
        if twin is None:
            self._make(link, underlay.index)
        else:
            self._change(link, underlay.index, twin)

    def delete(self, link: VxlanLink, links: Mapping[str, LinkInfo]) -> None:
        """Remove ``link`` if it is ours and there. Raises OSError."""
        found = links.get(link.name)
        if found is not None and found.is_ours():
            self._link("del", index=found.index)

    def _make(self, link: VxlanLink, underlay: int) -> None:
        self._send(asked.made(link, underlay))
        self._finish(self._index(link.name))

    def _change(self, link: VxlanLink, underlay: int, found: LinkInfo) -> None:
        index = found.index
        if found.name != link.name:
            self._link("set", index=index, state="down")
            self._link("set", index=index, ifname=link.name)
        vxlan = found.vxlan
        if vxlan is not None and (
            vxlan.local != link.local or vxlan.learning or vxlan.lower != underlay
        ):
            local = "vxlan_local" if link.local.version == 4 else "vxlan_local6"
            self._link(
                "set",
                index=index,
                kind="vxlan",
                vxlan_id=link.vni,
                vxlan_link=underlay,
                vxlan_learning=0,
                **{local: str(link.local)},
            )
        if found.mac != link.mac:
            self._send(asked.addressed(index, link.mac))
        if found.mtu != link.mtu:
            if found.mtu < _IPV6_MIN_MTU:
                # Such an MTU took IPv6 from the device. It comes back by itself, and on a
                # device that is up with a link-local address, before _mark can forbid one.
                self._send(asked.lowered(index))
            self._send(asked.sized(index, link.mtu))
        self._finish(index)

    def _finish(self, index: int) -> None:
        """Mark the device as ours and set it up."""
        self._send(asked.marked(index))
        try:
            # No link-local address and so no multicast traffic from the device itself.
            self._send(asked.silenced(index))
        except OSError as exc:
            if exc.errno not in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:  # a kernel without IPv6
                raise
        self._send(asked.raised(index))

    def _index(self, name: str) -> int:
        answer = self._socket().ask(asked.RTM_GETLINK, asked.by_name(name))
        if answer is None:
            raise OSError(errno.ENODEV, f"{name} is gone again")
        return parse_link(*answer).index

    def _send(self, request: Request) -> None:
        for refusal in self._socket().send([request]):
            raise OSError(refusal.errno, refusal.text)

    def _socket(self) -> RtnlSocket:
        # Not the one of routes: the monitor hears of links, whoever made them.
        if self._rtnl is None:
            self._rtnl = RtnlSocket()
        return self._rtnl

    def _link(self, verb: str, **options: Any) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            self._route().link(verb, **options)
        except NetlinkError as exc:
            raise OSError(int(exc.code), str(exc.args[-1])) from exc

    def _route(self) -> "IPRoute":
        if self._ipr is None:
            from pyroute2 import IPRoute  # 75 ms and 10 MiB, and hardly ever needed

            self._ipr = IPRoute(ext_ack=True)
        return self._ipr


def find_conflict(
    link: VxlanLink, links: Mapping[str, LinkInfo], *, replaces_flannel: bool = False
) -> str | None:
    """Return what stands in the way of ``link`` and how to clear it, None when nothing does.

    Something else of its name; or another VXLAN device with its VNI, port and
    family, of which the kernel takes only one; but not flannel's where that is
    to give way.
    """
    found = links.get(link.name)
    if found is not None and not found.could_be(link):
        return _conflict(link, found)
    rivals = (o for o in links.values() if not o.is_ours() and _takes_vni(o, link))
    rival = next((o for o in rivals if not (replaces_flannel and _is_flannels(o))), None)
    if rival is not None and rival is not found:
        return _conflict(link, rival)
    return None


def _conflict(link: VxlanLink, found: LinkInfo) -> str:
    vxlan = found.vxlan
    what = "is not a VXLAN device"
    if vxlan is not None:
        what = f"is a VXLAN device with VNI {vxlan.vni} and port {vxlan.port}"
    hint = (
        "; stop flannel on this node first (or let --replace-flannel do it)"
        if _is_flannels(found)
        else ""
    )
    return (
        f"device {found.name} exists, {what}, and is not ours; it stands in the way of "
        f"{link.name} (VNI {link.vni}, port {link.port}): remove it with `ip link del "
        f"{found.name}`{hint}, or choose another Backend.VNI"
    )


def _is_flannels(link: LinkInfo) -> bool:
    """Return whether the name is one of flannel's: flannel.VNI, flannel-v6.VNI."""
    return link.vxlan is not None and link.name.startswith(_FLANNEL)


def _takes_vni(other: LinkInfo, link: VxlanLink) -> bool:
    vxlan = other.vxlan
    return (
        vxlan is not None
        and (vxlan.vni, vxlan.port) == (link.vni, link.port)
        and _same_family(vxlan, link)
    )


def _same_port(other: LinkInfo, link: VxlanLink) -> bool:
    return other.vxlan is not None and other.vxlan.port == link.port


def _is_changeable(found: LinkInfo, link: VxlanLink) -> bool:
    vxlan = found.vxlan
    return (
        vxlan is not None
        and (vxlan.vni, vxlan.port, vxlan.gbp) == (link.vni, link.port, link.gbp)
        and _same_family(vxlan, link)
    )


def _same_family(vxlan: Vxlan, link: VxlanLink) -> bool:
    family = Family.IPV4 if vxlan.local is None else family_of(vxlan.local)
    return family is family_of(link.local)


def _u32(value: bytes | None) -> int:
    return int.from_bytes(value, "little") if value else 0


def _text(value: bytes | None) -> str:
    return value.rstrip(b"\0").decode(errors="replace") if value else ""


def names_by_index(links: Mapping[str, LinkInfo]) -> dict[int, str]:
    """Return the names of interfaces by their index."""
    return {link.index: link.name for link in links.values()}


def ours(links: Mapping[str, LinkInfo]) -> Sequence[LinkInfo]:
    """Return the devices that we made."""
    return [link for link in links.values() if link.is_ours()]
