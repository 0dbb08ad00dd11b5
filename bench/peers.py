"""The peers to measure with: leases as flannel would write them, and their kernel entries."""

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, ip_interface
from typing import Final

from bench import packer
from bench.entries import Entries, Identity
from overlay.model.address import Family
from overlay.model.lease import Lease, LeaseAttributes, Owner, format_attributes
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity, Underlay, vtep_mac
from overlay.model.subnet import Subnet
from overlay.plan.planner import Site
from overlay.plan.registry import load_backend

# Nodes that are measured get subnets below the peers' own.
CONFIG: Final = (
    '{"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.0.1.0", '
    '"SubnetMax": "10.0.255.0", "Backend": {"Type": "vxlan", "VNI": 1}}'
)
PREFIX: Final = "/coreos.com/network"
VNI: Final = 1
_V4: Final = Family.IPV4
_FIRST_SUBNET: Final = (10 << 24) + (1 << 16)  # 10.1.0.0
_FIRST_ADDRESS: Final = (172 << 24) + (17 << 16)  # 172.17.0.0, of 172.16.0.0/12


def owner(number: int) -> Owner:
    """Return what one of our agents says of itself in its lease, as little alike as machine ids."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    boot = f"{uuid.UUID(digest[32:])}/4026531840"
    return Owner(
        digest[:32], f"node-{number}", "0.1.0", f"2026-11-28T12:{number % 60:02}:00Z", boot
    )


def peer(number: int, *, is_own: bool = False) -> Lease:
    """Return a peer's lease, in flannel's form or, ``is_own``, with our own facts in it."""
    mac = vtep_mac(f"peer{number}-0", VNI, _V4)
    return Lease(
        Subnet(IPv4Network((_FIRST_SUBNET + (number << 8), 24))),
        LeaseAttributes(
            "vxlan",
            {_V4: IPv4Address(_FIRST_ADDRESS + number)},
            {_V4: {"VNI": VNI, "VtepMAC": mac}},
            owner(number) if is_own else None,
        ),
    )


def pair(lease: Lease) -> tuple[str, bytes]:
    """Return key and value of a lease in etcd."""
    return f"{PREFIX}/subnets/{lease.subnet.key}", format_attributes(lease.attributes)


def pairs(numbers: Iterable[int], *, are_own: bool = False) -> dict[str, bytes]:
    """Return keys and values of the peers."""
    return dict(pair(peer(number, is_own=are_own)) for number in numbers)


def entries(numbers: Iterable[int]) -> Entries:
    """Return what the kernel must hold for the peers."""
    wanted: dict[Identity, bytes] = {}
    for number in numbers:
        subnet = _FIRST_SUBNET + (number << 8)
        gateway = subnet.to_bytes(4, "big")
        mac = _mac(number)
        wanted["route", gateway + b"\x18"] = gateway
        wanted["neigh", gateway] = mac
        wanted["fdb", mac] = (_FIRST_ADDRESS + number).to_bytes(4, "big")
    return wanted


def packed(numbers: Iterable[int], index: int) -> Iterator[bytes]:
    """Yield the netlink messages for the three entries of each peer on the device ``index``."""
    for number in numbers:
        gateway, mac = _FIRST_SUBNET + (number << 8), _mac(number)
        yield packer.forwarding(mac, _FIRST_ADDRESS + number, index)
        yield packer.neighbor(gateway, mac, index)
        metric = 1 + number % packer.BUCKETS
        yield packer.route(gateway, 24, index=index, gateway=gateway, metric=metric)


def gone(numbers: Iterable[int]) -> Entries:
    """Return that the kernel must hold nothing of the peers."""
    return dict.fromkeys(entries(numbers))


def site() -> Site:
    """Return a node such as the measured one, for a floor that plans by itself."""
    config = parse_network_config(CONFIG)
    underlay = Underlay(
        "eth0", 1500, {_V4: ip_interface("172.16.0.1/12")}, {_V4: IPv4Address("172.16.0.1")}
    )
    own = Lease(Subnet(IPv4Network("10.0.1.0/24")), LeaseAttributes("vxlan"))
    return Site(config, load_backend(config, NodeIdentity("bench", "bench")), own, underlay)


def leases(numbers: Iterable[int]) -> Mapping[str, Lease]:
    """Return the peers' leases by key."""
    return {lease.subnet.key: lease for lease in map(peer, numbers)}


def _mac(number: int) -> bytes:
    return bytes.fromhex(vtep_mac(f"peer{number}-0", VNI, _V4).replace(":", ""))
