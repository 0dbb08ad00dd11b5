"""What the node's bridge lacks or has too much, in the words of ``overlayctl diff``; only read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv6Address

from overlay.kernel import bridge, messages, parse, sysctl
from overlay.kernel.bridge import Bridge
from overlay.kernel.bridge_ports import proxies
from overlay.kernel.links import LinkInfo, list_links
from overlay.kernel.nft import listed
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import IPAddress
from overlay.model.node import POD_BRIDGE, POD_BRIDGE_MAC
from overlay.policy.ports import PORT_TABLE


def differences(
    rtnl: RtnlSocket, wanted: Bridge | None, ports: Sequence[str], routed: Iterable[IPAddress]
) -> list[str]:
    """Return what would change: ``set`` before ``del``, empty where all is as it should be.

    ``wanted`` is None where no pod needs a bridge; ``ports`` are the links of
    the pods on it, ``routed`` the pods beside it that it answers for. Raises
    KernelError, NftError, OSError.
    """
    link = bridge.find(rtnl)
    if wanted is None:
        return [f"del link {POD_BRIDGE}"] if link is not None and bridge.is_ours(link) else []
    found = sorted(_all(rtnl, link, wanted, ports, routed), key=lambda line: line[:3] == "del")
    return found if listed(PORT_TABLE) is not None else [*found, f"set table {PORT_TABLE}"]


def _all(
    rtnl: RtnlSocket,
    link: LinkInfo | None,
    wanted: Bridge,
    ports: Sequence[str],
    routed: Iterable[IPAddress],
) -> Iterator[str]:
    whole = f"{POD_BRIDGE} type bridge mtu {wanted.mtu} address {POD_BRIDGE_MAC} up"
    if link is None or not bridge.is_ours(link):
        yield f"set link {whole}"
        yield from (f"set addr {address} dev {POD_BRIDGE}" for address in wanted.addresses)
        yield from (f"set link {name} master {POD_BRIDGE} up" for name in ports)
        return
    if (link.mtu, link.mac, link.is_up) != (wanted.mtu, POD_BRIDGE_MAC, True):
        yield f"set link {whole}"
    yield from _addresses(rtnl, link, wanted)
    for setting in bridge.settings(wanted):
        if sysctl.read(setting.name) != setting.value:
            yield f"set sysctl {setting}"
    yield from _ports(list_links(rtnl), link.index, ports)
    present = proxies(rtnl, link.index)
    targets = {address for address in routed if isinstance(address, IPv6Address)}
    yield from (f"set neigh proxy {a} dev {POD_BRIDGE}" for a in sorted(targets - present))
    yield from (f"del neigh proxy {a} dev {POD_BRIDGE}" for a in sorted(present - targets))


def _addresses(rtnl: RtnlSocket, link: LinkInfo, wanted: Bridge) -> Iterator[str]:
    answer = rtnl.dump(messages.RTM_GETADDR, messages.addresses_request(link.index))
    present = {a.address for a in parse.addresses(answer, POD_BRIDGE, link.index)}
    yield from (f"set addr {a} dev {POD_BRIDGE}" for a in wanted.addresses if a not in present)
    for address in present.difference(wanted.addresses):
        if not address.ip.is_link_local:
            yield f"del addr {address} dev {POD_BRIDGE}"


def _ports(links: Mapping[str, LinkInfo], index: int, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        port = links.get(name)
        # One that is gone is its pod's trouble: `overlayctl ipam check`.
        if port is not None and not (port.master == index and port.is_up):
            yield f"set link {name} master {POD_BRIDGE} up"
