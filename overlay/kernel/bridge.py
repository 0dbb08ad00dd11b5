"""The node's bridge for pods that need layer 2: made, put right, removed.

For this node's subnets S4 and S6::

    ip link add opod-bridge mtu MTU address MAC type bridge forward_delay 0 no_linklocal_learn 1
    ip link set opod-bridge alias overlay-fabric up
    ip addr add S4[1]/LEN dev opod-bridge;  ip addr add S6[1]/LEN dev opod-bridge nodad
    bridge link set dev opodX hairpin on
    ip neigh add proxy B dev opod-bridge

A pod on the bridge takes the whole subnet for its link, and so asks there for
pods that are routed too. The kernel answers such questions itself: for IPv4 by
``proxy_arp``, for IPv6 by an entry for each such pod (B).
"""

import errno
import struct
from dataclasses import dataclass
from typing import Final

from overlay.kernel import messages, parse, sysctl
from overlay.kernel.base import DeviceConflictError, KernelError
from overlay.kernel.link_requests import RTM_GETLINK
from overlay.kernel.links import LinkInfo, parse_link
from overlay.kernel.rtnl import NLM_F_CREATE, NLM_F_EXCL, Request, RtnlSocket
from overlay.kernel.wire import attribute
from overlay.model.address import IPInterface, MacAddress
from overlay.model.kernel import LINK_ALIAS, LinkAddress, Op
from overlay.model.node import POD_BRIDGE, POD_BRIDGE_MAC

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFINFOMSG: Final = struct.Struct("=BBHiII")
_U32: Final = struct.Struct("=I")
_IFF_UP: Final = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 18, 20
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_BR_FORWARD_DELAY, _IFLA_BR_MULTI_BOOLOPT = 1, 46
_NO_LINK_LOCAL_LEARN: Final = 1 << 0  # linux/if_bridge.h, BR_BOOLOPT_NO_LL_LEARN

# Nobody's advertisements, and no wait for duplicates; ARP for routed pods is
# answered at once, which the kernel else puts off by up to 0.8 s.
_SYSCTLS: Final = (
    ("net/ipv4/conf/{}/proxy_arp", "1"),
    ("net/ipv4/neigh/{}/proxy_delay", "0"),
)
_SYSCTLS_V6: Final = (
    ("net/ipv6/conf/{}/disable_ipv6", "0"),
    ("net/ipv6/conf/{}/accept_ra", "0"),
    ("net/ipv6/conf/{}/accept_dad", "0"),
    ("net/ipv6/conf/{}/proxy_ndp", "1"),
    ("net/ipv6/neigh/{}/proxy_delay", "0"),
)


@dataclass(frozen=True, slots=True)
class Bridge:
    """What the bridge should be: MTU in bytes, and the gateways' addresses."""

    mtu: int
    addresses: tuple[IPInterface, ...]


def ensure(rtnl: RtnlSocket, wanted: Bridge) -> tuple[int, list[str]]:
    """Make the bridge, or put it right; return its index and what was put right.

    Repeating it is safe. Raises DeviceConflictError where another device has
    its name, KernelError.
    """
    changes: list[str] = []
    link = find(rtnl)
    if link is None:
        for refusal in rtnl.send([_make(wanted)]):
            if refusal.errno != errno.EEXIST:
                raise KernelError(f"{POD_BRIDGE}: {refusal.text}")
        link = find(rtnl)
        if link is None:
            raise KernelError(f"{POD_BRIDGE} is gone again")
        changes.append(f"link {POD_BRIDGE} made")
    elif not is_ours(link):
        msg = (
            f"device {POD_BRIDGE} exists, is a {link.kind or 'device'} and is not ours; remove it "
            f"with `ip link del {POD_BRIDGE}`"
        )
        raise DeviceConflictError(msg)
    _send(rtnl, _corrections(link, wanted, changes))
    changes += _set_sysctls(wanted)
    requests = _raising(link, changes)
    _send(rtnl, requests + _address_corrections(rtnl, link.index, wanted, changes))
    return link.index, changes


def remove(rtnl: RtnlSocket) -> bool:
    """Remove the bridge if it is ours; return whether it was there. Raises KernelError."""
    link = find(rtnl)
    if link is None or not is_ours(link):
        return False
    body = _IFINFOMSG.pack(0, 0, 0, link.index, 0, 0)
    for refusal in rtnl.send([Request(_RTM_DELLINK, 0, body)]):
        if refusal.errno != errno.ENODEV:
            raise KernelError(f"{POD_BRIDGE}: {refusal.text}")
    return True


def find(rtnl: RtnlSocket, name: str = POD_BRIDGE) -> LinkInfo | None:
    """Return one link, None where there is none of that name."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name)
    answer = rtnl.ask(RTM_GETLINK, body)
    return None if answer is None else parse_link(*answer)


def is_ours(link: LinkInfo) -> bool:
    """Return whether we made the bridge: by its alias or, not yet marked, by its address."""
    return link.kind == "bridge" and (link.alias == LINK_ALIAS or link.mac == POD_BRIDGE_MAC)


def _make(wanted: Bridge) -> Request:
    # Frames to 01:80:c2:00:00:0X pass no rule of the bridge family's prerouting
    # hook, and the bridge would learn from them: another pod's MAC address too.
    options = struct.pack("=II", _NO_LINK_LOCAL_LEARN, _NO_LINK_LOCAL_LEARN)
    data = attribute(_IFLA_BR_FORWARD_DELAY, _U32.pack(0))
    data += attribute(_IFLA_BR_MULTI_BOOLOPT, options)
    kind = attribute(_IFLA_INFO_KIND, b"bridge") + attribute(_IFLA_INFO_DATA, data)
    body = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0, 0)
        + _text(_IFLA_IFNAME, POD_BRIDGE)
        + attribute(_IFLA_MTU, _U32.pack(wanted.mtu))
        + attribute(_IFLA_ADDRESS, _packed(POD_BRIDGE_MAC))
        + attribute(_IFLA_LINKINFO, kind)
    )
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def settings(wanted: Bridge) -> list[sysctl.Sysctl]:
    """Return the settings that the bridge should have."""
    names = [*_SYSCTLS]
    if any(interface.version == 6 for interface in wanted.addresses):
        names += _SYSCTLS_V6
    return [sysctl.Sysctl(name.format(POD_BRIDGE), value) for name, value in names]


def _set_sysctls(wanted: Bridge) -> list[str]:
    outcome = sysctl.ensure(settings(wanted))
    if outcome.problems:
        raise KernelError("; ".join(outcome.problems))
    return [str(change) for change in outcome.changes]


def _send(rtnl: RtnlSocket, requests: list[Request]) -> None:
    for refusal in rtnl.send(requests) if requests else ():
        msg = f"{POD_BRIDGE}: {refusal.text}"
        raise KernelError(msg)


def _corrections(link: LinkInfo, wanted: Bridge, changes: list[str]) -> list[Request]:
    """Return what gives the link its MTU and MAC address, and add to ``changes`` what that is.

    First of all: below 1280 bytes the kernel takes IPv6 and its settings away.
    """
    body = b""
    if link.mtu != wanted.mtu:
        changes.append(f"link {POD_BRIDGE} mtu {wanted.mtu}")
        body += attribute(_IFLA_MTU, _U32.pack(wanted.mtu))
    if link.mac != POD_BRIDGE_MAC:
        changes.append(f"link {POD_BRIDGE} address {POD_BRIDGE_MAC}")
        body += attribute(_IFLA_ADDRESS, _packed(POD_BRIDGE_MAC))
    if not body:
        return []
    return [Request(_RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, 0, link.index, 0, 0) + body)]


def _raising(link: LinkInfo, changes: list[str]) -> list[Request]:
    """Return what marks the link as ours and sets it up, with its settings in force."""
    if link.alias == LINK_ALIAS and link.is_up:
        return []
    if not link.is_up:
        changes.append(f"link {POD_BRIDGE} up")
    head = _IFINFOMSG.pack(0, 0, 0, link.index, _IFF_UP, _IFF_UP)
    return [Request(_RTM_NEWLINK, 0, head + _text(_IFLA_IFALIAS, LINK_ALIAS))]


def _address_corrections(
    rtnl: RtnlSocket, index: int, wanted: Bridge, changes: list[str]
) -> list[Request]:
    answer = rtnl.dump(messages.RTM_GETADDR, messages.addresses_request(index))
    present = {a.address for a in parse.addresses(answer, POD_BRIDGE, index)}
    missing = [a for a in wanted.addresses if a not in present]
    stale = [a for a in present if a not in wanted.addresses and not a.ip.is_link_local]
    changes += [f"address {a} dev {POD_BRIDGE}" for a in missing]
    where = {POD_BRIDGE: index}
    ops = [Op("set", LinkAddress(POD_BRIDGE, a)) for a in missing]
    ops += [Op("del", LinkAddress(POD_BRIDGE, a)) for a in stale]
    return [messages.request(op, where) for op in ops]


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _packed(mac: MacAddress) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
