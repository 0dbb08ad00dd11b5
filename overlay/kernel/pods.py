"""A pod's interface: a veth pair, routed point to point, made and removed in packed netlink.

For a pod with the addresses A (IPv4) and B (IPv6)::

    ip link add opodX group G mtu MTU address H numtxqueues 1 numrxqueues 1
        type veth peer name eth0 address P numtxqueues 1 numrxqueues 1 netns POD
    ip -n POD addr add A/32 dev eth0;  ip -n POD addr add B/128 dev eth0 nodad
    ip -n POD neigh add 169.254.1.1 lladdr H dev eth0 nud permanent;  the same for fe80::1
    ip -n POD route add 169.254.1.1 dev eth0 scope link
    ip -n POD route add default via 169.254.1.1 dev eth0 onlink
    ip -n POD route add default via fe80::1 dev eth0
    ip link set opodX addrgenmode none up
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
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from overlay.kernel import bridge_ports, messages, parse, pod_requests
from overlay.kernel.announce import announce
from overlay.kernel.answers import Refusal
from overlay.kernel.base import KernelError
from overlay.kernel.link_requests import RTM_GETLINK
from overlay.kernel.links import LinkInfo, list_links, parse_link
from overlay.kernel.pod_gateway import GATEWAY, gateway
from overlay.kernel.pod_namespace import PodNamespace, open_pod_rtnl
from overlay.kernel.pod_paths import path_of
from overlay.kernel.rtnl import NLM_F_APPEND, RtnlSocket
from overlay.model.address import FAMILIES, Family, IPAddress, IPNetwork, MacAddress, family_of
from overlay.model.attachment import BRIDGE, Attachment, AttachmentKey
from overlay.model.kernel import POD_ROUTE_PROTOCOL
from overlay.model.node import POD_BRIDGE, POD_BRIDGE_MAC, POD_LINK_PREFIX
from overlay.model.subnet import Subnet

# Threads that wait until the kernel is done with a link; each for some 20 ms. With
# 16 of them a DEL in ten waited for one (November 2026).
_DELETING: Final = ThreadPoolExecutor(max_workers=64, thread_name_prefix="dellink")
_GROUPS: Final = (1 << 31) - 1  # tools print them signed
_GONE: Final = frozenset((errno.ENODEV, errno.ENOENT))
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
    ``group`` tells links of one CNI network from those of others.
    """

    interface: str
    host_interface: str
    mac: MacAddress
    host_mac: MacAddress
    mtu: int
    addresses: tuple[IPAddress, ...]
    networks: tuple[IPNetwork, ...] = ()
    group: int = 0

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


def link_group(network: str) -> int:
    """Return the group of a CNI network's links: never 0, which is everybody's."""
    return int.from_bytes(hashlib.sha256(network.encode()).digest()[:4], "big") % _GROUPS + 1


def link_mac(name: str, end: str) -> MacAddress:
    """Return a MAC address for one ``end`` of the pair: locally administered, unicast."""
    digest = hashlib.sha256(f"{name}\0{end}".encode()).digest()
    first = (digest[0] | 0x02) & 0xFE
    return MacAddress((bytes((first,)) + digest[1:6]).hex(":"))


def attach(
    rtnl: RtnlSocket,
    netns: PodNamespace,
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

    ``rtnl`` is a socket of the calling thread's namespace. Raises
    InterfaceExistsError, KernelError.
    """
    if "%" in link.interface:  # the kernel would take it for a pattern, and count up
        msg = f"{link.interface!r} is not the name of an interface"
        raise KernelError(msg)
    host, pod = (link.host_interface, link.host_mac), (link.interface, link.mac)
    try:
        refusal, told = rtnl.send_heard(
            pod_requests.pair(host, pod, link.mtu, netns.descriptor, link.group)
        )
        _expect_made(refusal, link)
        if told is not None:
            index, peer = pod_requests.ends(told)
        else:
            index, peer = _index(rtnl, link.host_interface), 0
        if bridge is not None:
            _make_port(rtnl, link, index, bridge)
        with open_pod_rtnl(netns, _sysctls(link), rtnl.namespace()) as inside:
            defaults = _set_up_pod(inside, link, peer or _index(inside, link.interface), beside)
        if bridge is None:
            _set_up_host(rtnl, link, index)
        else:
            _await_forwarding(rtnl, link, index)
    except InterfaceExistsError:
        raise
    except BaseException:
        _take_back(rtnl, link.host_interface)
        raise
    return defaults


def detach(host_interface: str) -> bool:
    """Remove the pair by its host's end; return whether there was one.

    Its addresses, routes and neighbors go with it; both names are free again.
    Raises KernelError.
    """
    request = pod_requests.removal(host_interface)
    refusal = RtnlSocket().send_echoed(request, _DELETING.submit)
    if refusal is None:
        return True
    if refusal.errno in _GONE:
        return False
    msg = f"{host_interface}: {refusal.text}"
    raise KernelError(msg)


def _take_back(rtnl: RtnlSocket, host_interface: str) -> None:
    """Remove a pair as ``detach`` does, or slower: with ``rtnl``, where nothing new can be had."""
    try:
        detach(host_interface)
    except KernelError:
        for refusal in rtnl.send([pod_requests.removal(host_interface)]):
            if refusal.errno not in _GONE:
                msg = f"{host_interface}: {refusal.text}"
                raise KernelError(msg) from None


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
        for message in rtnl.dump(messages.RTM_GETROUTE, pod_requests.own_routes(family)):
            protocol, index = parse.route_maker(message)
            prefix, _ = parse.route_way(*message)
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
        group=link_group(attachment.key.network),
    )


def _sysctls(link: PodLink) -> dict[str, str]:
    """Return what the pod's end needs before it has addresses."""
    has_ipv6 = any(family_of(address) is Family.IPV6 for address in link.addresses)
    wanted = (
        *(_IPV6_SYSCTLS if has_ipv6 else ()),
        *(_BRIDGED_SYSCTLS if link.networks else ()),
    )
    return {f"{link.interface}/{name}": value for name, value in wanted}


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
    requests = [pod_requests.up(1), pod_requests.up(index)]
    if link.networks:
        # The rules of its port know this one link-local address.
        requests.insert(1, bridge_ports.address_generation(index, bridge_ports.ADDR_GEN_EUI64))
    defaults: dict[int, Family] = {}  # by the place of the request
    for address in link.addresses:
        family, network, way = (
            family_of(address),
            link.network_of(address),
            link.gateway_of(address),
        )
        length = network.prefixlen if network is not None else family.bits
        mac = POD_BRIDGE_MAC if network is not None else link.host_mac
        requests.append(pod_requests.address(index, address, length))
        requests.append(pod_requests.neighbor(index, way, mac))
        # The gateway is the same on another interface of this pod: there is a
        # route to it by each, or none could ever have a route by way of it.
        if network is None and family is Family.IPV4:
            requests.append(pod_requests.link_route(index, way, NLM_F_APPEND))
        defaults[len(requests)] = family
        requests.append(pod_requests.default_route(index, way))
    families = set(defaults.values())
    for refusal in inside.send(requests):
        # Another interface may have brought the default route already: it stays.
        if refusal.index in defaults and refusal.errno == errno.EEXIST:
            del defaults[refusal.index]
            continue
        msg = f"{link.interface} in the pod: {refusal.text}"
        raise KernelError(msg)
    made = frozenset(defaults.values())
    if beside or made != families:
        _part_ways(inside, (link, *beside))
    return made


def _part_ways(inside: RtnlSocket, links: Iterable[PodLink]) -> None:
    """Lead each address out by its own interface; repeating it is safe."""
    # Somebody may have removed another one meanwhile, or set it down: no route goes by that.
    there = {name: info for name, info in list_links(inside).items() if info.is_up}
    requests = [
        request
        for link in links
        if link.interface in there
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
    for refusal in rtnl.send(gateway(index, link.addresses)):
        msg = f"{link.host_interface}: {refusal.text}"
        raise KernelError(msg)


def _index(rtnl: RtnlSocket, name: str) -> int:
    answer = rtnl.ask(RTM_GETLINK, pod_requests.by_name(name))
    if answer is None:
        msg = f"interface {name} is gone again"
        raise KernelError(msg)
    return parse_link(*answer).index


def _expect_made(refusal: Refusal | None, link: PodLink) -> None:
    if refusal is None:
        return
    if refusal.errno == errno.EEXIST:
        msg = f"interface {link.interface}, or {link.host_interface} of the host, exists already"
        raise InterfaceExistsError(msg)
    msg = f"{link.interface}: veth pair: {refusal.text}"
    raise KernelError(msg)
