"""A pod's interface: a veth pair, routed point to point, made and removed in packed netlink.

For a pod with the addresses A (IPv4) and B (IPv6)::

    ip link add opodX mtu MTU address H type veth peer name eth0 address P netns POD
    ip -n POD addr add A/32 dev eth0;  ip -n POD addr add B/128 dev eth0 nodad
    ip -n POD neigh add 169.254.1.1 lladdr H dev eth0 nud permanent;  the same for fe80::1
    ip -n POD route add 169.254.1.1 dev eth0 scope link
    ip -n POD route add default via 169.254.1.1 dev eth0 onlink
    ip -n POD route add default via fe80::1 dev eth0
    ip addr add 169.254.1.1/32 dev opodX scope host;  ip addr add fe80::1/64 dev opodX nodad
    ip route add A/32 dev opodX proto 80;  the same for B/128

No bridge, no duplicate-address wait. Measured in November 2026: see
docs/performance.md. In mode ``bridge`` the host's end is a port of the node's
bridge instead, made before the pod's end is up (``overlay.kernel.bridge``)::

    ip link set opodX master opod-bridge up;  bridge link set dev opodX hairpin on
    ip -n POD addr add A/24 dev eth0;  ip -n POD addr add B/64 dev eth0 nodad
    ip -n POD neigh add S4[1] lladdr BRIDGE-MAC dev eth0 nud permanent;  the same for S6[1]
    ip -n POD route add default via S4[1] dev eth0;  the same for S6[1]
"""

import errno
import hashlib
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from typing import Final

from overlay.kernel import bridge_ports, messages
from overlay.kernel.announce import announce
from overlay.kernel.base import KernelError
from overlay.kernel.links import RTM_GETLINK, LinkInfo, list_links, parse_link
from overlay.kernel.netns import open_rtnl
from overlay.kernel.pod_gateway import gateway_address
from overlay.kernel.pod_paths import path_of
from overlay.kernel.rtnl import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Refusal,
    Request,
    RtnlSocket,
    attribute,
    attributes,
)
from overlay.model.address import FAMILIES, Family, IPAddress, IPNetwork, MacAddress, family_of
from overlay.model.attachment import BRIDGE, Attachment, AttachmentKey
from overlay.model.kernel import POD_ROUTE_PROTOCOL, LinkAddress, Neighbor, Op
from overlay.model.node import POD_BRIDGE, POD_BRIDGE_MAC, POD_LINK_PREFIX
from overlay.model.subnet import Subnet

# Threads that wait until the kernel is done with a link; each for some 20 ms. With
# 16 of them a DEL in ten waited for one (November 2026).
_DELETING: Final = ThreadPoolExecutor(max_workers=64, thread_name_prefix="dellink")
GATEWAY: Final[dict[Family, IPAddress]] = {
    Family.IPV4: IPv4Address("169.254.1.1"),
    Family.IPV6: IPv6Address("fe80::1"),
}

_DEFAULT: Final = {Family.IPV4: ip_network("0.0.0.0/0"), Family.IPV6: ip_network("::/0")}
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFINFOMSG: Final = struct.Struct("=BBHiII")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_U32: Final = struct.Struct("=I")
_IFF_UP: Final = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_LINKINFO, _IFLA_NET_NS_FD = 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_MAIN_TABLE, _RTN_UNICAST, _RTNH_F_ONLINK = 254, 1, 4
_SCOPE: Final = {"link": 253, "global": 0}
_FORWARDING_S: Final = 1.0  # at most, until a port carries frames; some milliseconds mostly
# Some runtimes switch IPv6 off for all that comes, and still ask for a dual-stack network.
_IPV6_SYSCTLS: Final = (("disable_ipv6", "0"),)
# Nobody on the segment configures a pod, and nobody is asked whether its address is free.
_BRIDGED_SYSCTLS: Final = (("accept_ra", "0"), ("accept_dad", "0"))


class InterfaceExistsError(KernelError):
    """The pod, or the host, has an interface of that name already."""


@dataclass(frozen=True, slots=True)
class PodLink:
    """What ``attach`` makes: names, MAC addresses, MTU in bytes, and the pod's addresses.

    ``networks`` are those of the segment that it is on, none where it is routed.
    """

    interface: str
    host_interface: str
    mac: MacAddress
    host_mac: MacAddress
    mtu: int
    addresses: tuple[IPAddress, ...]
    networks: tuple[IPNetwork, ...] = ()

    def network_of(self, address: IPAddress) -> IPNetwork | None:
        """Return what is on the link with ``address``: None where nothing is."""
        return next((n for n in self.networks if n.version == address.version), None)

    def gateway_of(self, address: IPAddress) -> IPAddress:
        """Return where what is not on the link is sent."""
        network = self.network_of(address)
        return GATEWAY[family_of(address)] if network is None else network[1]


def link_name(key: AttachmentKey) -> str:
    """Return the name of the host's end: found again from the attachment's key alone."""
    seed = f"{key.network}\0{key.container}\0{key.interface}".encode()
    return POD_LINK_PREFIX + hashlib.sha256(seed).hexdigest()[:11]


def link_mac(name: str, end: str) -> MacAddress:
    """Return a MAC address for one ``end`` of the pair: locally administered, unicast."""
    digest = hashlib.sha256(f"{name}\0{end}".encode()).digest()
    first = (digest[0] | 0x02) & 0xFE
    return MacAddress(":".join(f"{byte:02x}" for byte in (first, *digest[1:6])))


def attach(
    rtnl: RtnlSocket,
    netns: int,
    link: PodLink,
    beside: Sequence[PodLink] = (),
    bridge: int | None = None,
) -> frozenset[Family]:
    """Make the pair and everything on it; on an error nothing of it stays.

    Return the families whose default route it made: where the pod had one
    before, that one stays. ``beside`` are the pod's other interfaces of ours:
    with them, or with somebody else's default route, each address gets a way
    out by its own interface. With the index of a ``bridge`` the host's end is
    a port of it, whose rules must be there already; it carries frames when this
    returns.

    ``rtnl`` is a socket on the host's side, ``netns`` a descriptor of the
    pod's namespace. Raises InterfaceExistsError, KernelError.
    """
    if "%" in link.interface:  # the kernel would take it for a pattern, and count up
        msg = f"{link.interface!r} is not the name of an interface"
        raise KernelError(msg)
    refusal, told = rtnl.send_heard(_make_pair(link, netns))
    if refusal is not None:
        raise _made(refusal, link)
    try:
        index, peer = _ends(told) if told is not None else (_index(rtnl, link.host_interface), 0)
        if bridge is not None:
            _make_port(rtnl, link, index, bridge)
        with open_rtnl(netns, _sysctls(link)) as inside:
            defaults = _set_up_pod(inside, link, peer or _index(inside, link.interface), beside)
        if bridge is None:
            _set_up_host(rtnl, link, index)
        else:
            _await_forwarding(rtnl, link, index)
    except KernelError:
        detach(link.host_interface)
        raise
    return defaults


def detach(host_interface: str) -> bool:
    """Remove the pair by its host's end; return whether there was one.

    Its addresses, routes and neighbors go with it; both names are free again.
    Raises KernelError.
    """
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, host_interface)
    refusal = RtnlSocket().send_echoed(Request(_RTM_DELLINK, 0, body), _DELETING.submit)
    if refusal is None:
        return True
    if refusal.errno in {errno.ENODEV, errno.ENOENT}:
        return False
    msg = f"{host_interface}: {refusal.text}"
    raise KernelError(msg)


def host_links(rtnl: RtnlSocket) -> dict[str, LinkInfo]:
    """Return the host's ends there are, whoever's they were."""
    links = list_links(rtnl)
    return {
        name: info
        for name, info in links.items()
        if name.startswith(POD_LINK_PREFIX) and name != POD_BRIDGE
    }


def addresses_in_use(rtnl: RtnlSocket) -> dict[str, list[IPAddress]]:
    """Return the host's ends there are, each with the addresses that are routed to it.

    ``ip route show proto 80``. To a port of the bridge none is routed: its
    alias names them.
    """
    links = host_links(rtnl)
    found = {name: bridge_ports.addresses_of(info) for name, info in links.items()}
    names = {info.index: name for name, info in links.items()}
    for family in FAMILIES:
        body = _RTMSG.pack(messages.AF[family], 0, 0, 0, _MAIN_TABLE, POD_ROUTE_PROTOCOL, 0, 0, 0)
        for message in rtnl.dump(messages.RTM_GETROUTE, body):
            protocol, index = messages.route_maker(message)
            prefix, _ = messages.route_way(*message)
            if protocol == POD_ROUTE_PROTOCOL and index in names and prefix.num_addresses == 1:
                found[names[index]].append(prefix.network_address)
    return found


def pod_link(attachment: Attachment, subnet: Subnet) -> PodLink:
    """Return what ``attach`` makes for an attachment of a node with ``subnet``."""
    name = attachment.link
    is_bridged = attachment.mode == BRIDGE
    return PodLink(
        interface=attachment.key.interface,
        host_interface=name,
        mac=attachment.mac or link_mac(name, "pod"),
        host_mac=link_mac(name, "host"),
        mtu=attachment.mtu,
        addresses=attachment.addresses,
        networks=tuple(subnet.networks()) if is_bridged else (),
    )


def _make_pair(link: PodLink, netns: int) -> Request:
    peer = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0, 0)
        + _text(_IFLA_IFNAME, link.interface)
        + attribute(_IFLA_MTU, _U32.pack(link.mtu))
        + attribute(_IFLA_ADDRESS, _packed(link.mac))
        + attribute(_IFLA_NET_NS_FD, _U32.pack(netns))
    )
    data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
    body = (
        _IFINFOMSG.pack(0, 0, 0, 0, 0, 0)
        + _text(_IFLA_IFNAME, link.host_interface)
        + attribute(_IFLA_MTU, _U32.pack(link.mtu))
        + attribute(_IFLA_ADDRESS, _packed(link.host_mac))
        + attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"veth") + data)
    )
    return Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _ends(told: Message) -> tuple[int, int]:
    """Return the index of the host's end, and that of the other in the pod's namespace or 0."""
    data, start, end = told
    peer = attributes(data, start + _IFINFOMSG.size, end).get(_IFLA_LINK, bytes(4))
    return int(_IFINFOMSG.unpack_from(data, start)[3]), int(_U32.unpack(peer)[0])


def _sysctls(link: PodLink) -> dict[str, str]:
    """Return what the pod's end needs before it has addresses."""
    has_ipv6 = any(family_of(address) is Family.IPV6 for address in link.addresses)
    wanted = (
        *(_IPV6_SYSCTLS if has_ipv6 else ()),
        *(_BRIDGED_SYSCTLS if link.networks else ()),
    )
    return {f"net/ipv6/conf/{link.interface}/{name}": value for name, value in wanted}


def _make_port(rtnl: RtnlSocket, link: PodLink, index: int, bridge: int) -> None:
    requests = [
        bridge_ports.enslaving(index, bridge),
        *bridge_ports.port_settings(index),
        bridge_ports.naming(index, link.addresses),
    ]
    requests += [bridge_ports.known_neighbor(bridge, a, link.mac) for a in link.addresses]
    for refusal in rtnl.send(requests):
        msg = f"{link.host_interface}: {refusal.text}"
        raise KernelError(msg)


def _await_forwarding(rtnl: RtnlSocket, link: PodLink, index: int) -> None:
    """Wait until the port carries frames, then tell the segment who is there."""
    deadline = time.monotonic() + _FORWARDING_S
    while not bridge_ports.is_forwarding(rtnl, index) and time.monotonic() < deadline:
        time.sleep(0.0005)
    announce(POD_BRIDGE, link.mac, link.addresses)


def _set_up_pod(
    inside: RtnlSocket, link: PodLink, index: int, beside: Sequence[PodLink]
) -> frozenset[Family]:
    where = {link.interface: index}
    requests = [_up(1), _up(index)]
    if link.networks:
        # The rules of its port know this one link-local address.
        requests.insert(1, bridge_ports.address_generation(index, bridge_ports.ADDR_GEN_EUI64))
    optional: set[int] = set()
    defaults: dict[int, Family] = {}  # by the place of the request
    for address in link.addresses:
        family, network = family_of(address), link.network_of(address)
        gateway = link.gateway_of(address)
        entry = Neighbor(link.interface, gateway, POD_BRIDGE_MAC if network else link.host_mac)
        length = network.prefixlen if network else family.bits
        own = LinkAddress(link.interface, ip_interface((address, length)))
        requests += [messages.request(Op("set", o), where) for o in (own, entry)]
        # The gateway is the same on another interface of this pod: there is a
        # route to it by each, or none could ever have a route by way of it.
        if network is None and family is Family.IPV4:
            requests.append(_route(ip_network(gateway), index, scope="link", flag=NLM_F_APPEND))
        # That interface may have brought the default route already: it stays.
        optional.add(len(requests))
        defaults[len(requests)] = family
        requests.append(_route(_DEFAULT[family], index, gateway=gateway))
    for refusal in inside.send(requests):
        if refusal.index in optional and refusal.errno == errno.EEXIST:
            defaults.pop(refusal.index, None)
            continue
        msg = f"{link.interface} in the pod: {refusal.text}"
        raise KernelError(msg)
    if beside or len(set(defaults.values())) < len({family_of(a) for a in link.addresses}):
        _part_ways(inside, (link, *beside))
    return frozenset(defaults.values())


def _part_ways(inside: RtnlSocket, links: Iterable[PodLink]) -> None:
    """Lead each address out by its own interface; repeating it is safe."""
    there = list_links(inside)
    requests = [
        request
        for link in links
        if link.interface in there  # somebody may have removed another one meanwhile
        for address in link.addresses
        for request in path_of(
            there[link.interface].index,
            address,
            link.gateway_of(address),
            POD_ROUTE_PROTOCOL,
            link.network_of(address),
        )
    ]
    for refusal in inside.send(requests):
        if refusal.errno != errno.EEXIST:
            msg = f"several interfaces in the pod: {refusal.text}"
            raise KernelError(msg)


def _set_up_host(rtnl: RtnlSocket, link: PodLink, index: int) -> None:
    requests = [_up(index)]
    for address in link.addresses:
        requests.append(gateway_address(index, GATEWAY[family_of(address)]))
        requests.append(_route(ip_network(address), index, scope="link", flag=NLM_F_REPLACE))
    for refusal in rtnl.send(requests):
        msg = f"{link.host_interface}: {refusal.text}"
        raise KernelError(msg)


def _route(
    prefix: IPNetwork,
    index: int,
    *,
    gateway: IPAddress | None = None,
    scope: str = "global",
    flag: int = NLM_F_EXCL,
) -> Request:
    family = family_of(prefix)
    level = _SCOPE[scope] if family is Family.IPV4 else 0
    body = _RTMSG.pack(
        messages.AF[family],
        prefix.prefixlen,
        0,
        0,
        _MAIN_TABLE,
        POD_ROUTE_PROTOCOL,
        level,
        _RTN_UNICAST,
        # Another interface of the pod may hold the route to the gateway.
        _RTNH_F_ONLINK if gateway is not None else 0,
    )
    if prefix.prefixlen:
        body += attribute(_RTA_DST, prefix.network_address.packed)
    body += attribute(_RTA_OIF, _U32.pack(index))
    if gateway is not None:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    return Request(messages.RTM_NEWROUTE, NLM_F_CREATE | flag, body)


def _index(rtnl: RtnlSocket, name: str) -> int:
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name)
    answer = rtnl.ask(RTM_GETLINK, body)
    if answer is None:
        msg = f"interface {name} is gone again"
        raise KernelError(msg)
    return parse_link(*answer).index


def _up(index: int) -> Request:
    return Request(_RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, 0, index, _IFF_UP, _IFF_UP))


def _made(refusal: Refusal, link: PodLink) -> KernelError:
    if refusal.errno == errno.EEXIST:
        msg = f"interface {link.interface}, or {link.host_interface} of the host, exists already"
        return InterfaceExistsError(msg)
    msg = f"{link.interface}: veth pair: {refusal.text}"
    return KernelError(msg)


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _packed(mac: MacAddress) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
