"""What a pod on the bridge may call itself: its own MAC and its own addresses, in every frame.

Packets of a routed pod are judged where the node routes them
(``overlay.policy.egress``). Those between ports of a bridge never come there,
so that each port has a chain of its own in the ``bridge`` family, before the
bridge learns from a frame. What is not IPv4, IPv6 or ARP is dropped: nobody
could tell whose it is. A port without a chain passes nothing.

Every name begins with ``ov_``: nft's keywords bite as names.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from overlay.model.address import IPAddress, MacAddress
from overlay.model.node import POD_LINK_PREFIX

PORT_TABLE: Final = "bridge overlay"
_PRIORITY: Final = -300  # before others' chains of this hook
_LINK_LOCAL: Final = int(IPv6Address("fe80::"))
_UNIVERSAL_BIT: Final = 1 << 57  # of an interface identifier (RFC 4291, appendix A)


@dataclass(frozen=True, slots=True)
class Port:
    """A pod's link on the bridge, and what its frames may come from."""

    link: str
    mac: MacAddress
    addresses: tuple[IPAddress, ...]

    @property
    def chain(self) -> str:
        """Return the name of its chain."""
        return f"ov_{self.link}"


def link_local(mac: MacAddress) -> IPv6Address:
    """Return the link-local address that the kernel makes of a MAC address (RFC 4291, 2.5.6).

    >>> link_local(MacAddress("02:00:00:00:00:01"))
    IPv6Address('fe80::ff:fe00:1')
    """
    number = int(mac.replace(":", ""), 16)
    identifier = (number >> 24 << 40) | 0xFFFE << 24 | (number & 0xFFFFFF)
    return IPv6Address(_LINK_LOCAL | identifier ^ _UNIVERSAL_BIT)


def whole_table(ports: Iterable[Port]) -> str:
    """Return what replaces the table, whatever it held, in one ``nft -f -``."""
    ordered = sorted(ports, key=lambda port: port.link)
    chains = "".join(_chain(port) for port in ordered)
    members = ", ".join(_member(port) for port in ordered)
    elements = f"\t\telements = {{ {members} }}\n" if members else ""
    return (
        f"table {PORT_TABLE} {{}}\ndelete table {PORT_TABLE}\n"
        f"table {PORT_TABLE} {{\n{chains}"
        f"\tmap ov_ports {{\n\t\ttype ifname : verdict\n{elements}\t}}\n"
        "\tchain ov_source {\n"
        f"\t\ttype filter hook prerouting priority {_PRIORITY}; policy accept;\n"
        f'\t\tiifname != "{POD_LINK_PREFIX}*" accept\n'
        "\t\tiifname vmap @ov_ports\n"
        '\t\tcounter drop comment "a port that nobody knows"\n'
        "\t}\n}\n"
    )


def change(old: Iterable[Port], new: Iterable[Port]) -> str:
    """Return what turns the table of ``old`` into that of ``new``; empty where they are equal."""
    before, after = {p.link: p for p in old}, {p.link: p for p in new}
    gone = [p for link, p in before.items() if after.get(link) != p]
    come = [p for link, p in after.items() if before.get(link) != p]
    lines: list[str] = []
    for port in gone:
        lines += [
            f"delete element {PORT_TABLE} ov_ports {{ {_member(port)} }}\n",
            f"delete chain {PORT_TABLE} {port.chain}\n",
        ]
    if come:
        lines.append(f"table {PORT_TABLE} {{\n{''.join(map(_chain, come))}}}\n")
        members = ", ".join(map(_member, come))
        lines.append(f"add element {PORT_TABLE} ov_ports {{ {members} }}\n")
    return "".join(lines)


def _member(port: Port) -> str:
    return f'"{port.link}" : goto {port.chain}'


def _chain(port: Port) -> str:
    rules = "".join(f"\t\t{rule}\n" for rule in _rules(port))
    return f"\tchain {port.chain} {{\n{rules}\t}}\n"


def _rules(port: Port) -> Iterator[str]:
    mac = port.mac
    yield f'ether saddr != {mac} counter drop comment "a MAC address, forged"'
    v4 = [str(a) for a in port.addresses if a.version == 4]
    v6 = [a for a in port.addresses if a.version == 6]
    for address in v4:
        yield f"ether type ip ip saddr {address} accept"
    if v4:
        yield f'ether type arp arp saddr ether != {mac} counter drop comment "ARP, forged"'
        # A question from nobody: whether an address is in use (RFC 5227).
        yield "ether type arp arp operation request arp saddr ip 0.0.0.0 accept"
        yield from (f"ether type arp arp saddr ip {address} accept" for address in v4)
    if v6:
        own = [*v6, link_local(mac)]
        # The target of an advertisement, 8 bytes into ICMPv6 (RFC 4861, 4.4).
        targets = ", ".join(f"{int(address):#034x}" for address in own)
        yield "icmpv6 type { nd-router-advert, nd-redirect } counter drop"
        yield f"icmpv6 type nd-neighbor-advert @th,64,128 != {{ {targets} }} counter drop"
        listed = ", ".join(map(str, own))
        yield f"ether type ip6 ip6 saddr {{ {listed} }} accept"
        # Before an interface has an address: is it in use, who is in the group.
        yield "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld-listener-report } accept"
        yield "ip6 saddr :: icmpv6 type mld2-listener-report accept"
    yield 'counter drop comment "a source address, forged"'
