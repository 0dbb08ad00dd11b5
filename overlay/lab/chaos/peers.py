"""Leases of nodes that do not exist, and what every lease must come to in a kernel.

Worked out here once more from the wire format alone (docs/architecture.md,
"In the kernel"), so that a planner that is wrong is found.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from overlay.lab.chaos.picture import DEVICE, NODE_TABLE, ip_show, look
from overlay.lab.chaos.picture import FORWARDING as FORWARDING_PART

_PUBLIC: Final = IPv4Address("172.16.0.10")  # of the first; behind the lab's router, nowhere


@dataclass(frozen=True, slots=True)
class Entries:
    """A node's entries for its peers, each as its tool's own words."""

    routes: frozenset[tuple[str, str]]  # prefix, gateway; of both tables
    neighbors: frozenset[tuple[str, str]]  # address, MAC
    forwarding: frozenset[tuple[str, str]]  # MAC, public address

    def difference(self, other: "Entries") -> str:
        """Return in a line what ``other`` lacks and what it has too much."""
        pairs = (
            ("route", self.routes, other.routes),
            ("neighbor", self.neighbors, other.neighbors),
            ("fdb", self.forwarding, other.forwarding),
        )
        told = []
        for name, wanted, seen in pairs:
            told += [f"-{name} {' '.join(entry)}" for entry in sorted(wanted - seen)[:3]]
            told += [f"+{name} {' '.join(entry)}" for entry in sorted(seen - wanted)[:3]]
        return "; ".join(told)


def fake_lease(number: int) -> bytes:
    """Return the lease value of a node that does not exist, as flannel writes it."""
    document = {
        "PublicIP": str(_PUBLIC + number),
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": _mac(number)},
    }
    return json.dumps(document).encode()


def with_mac(lease: bytes, number: int) -> bytes:
    """Return the lease of a node that came back with the MAC address of ``number``."""
    document = json.loads(lease)
    document["BackendData"]["VtepMAC"] = _mac(number)
    return json.dumps(document).encode()


def subnet_of(key: str) -> IPv4Network:
    """Return the subnet that a lease's key stands for: ``10.244.3.0-24``."""
    return IPv4Network(key.replace("-", "/"))


def expected(leases: Mapping[str, bytes], own: str) -> Entries:
    """Return what a node that holds the key ``own`` must have; unreadable leases are left out."""
    routes, neighbors, forwarding = set(), set(), set()
    for key, value in leases.items():
        facts = _facts(value)
        if key == own or facts is None:
            continue
        subnet, public, mac = subnet_of(key), facts["PublicIP"], facts["BackendData"]["VtepMAC"]
        gateway = str(subnet.network_address)
        routes |= {(str(subnet), gateway), (public, gateway)}
        neighbors.add((gateway, mac))
        forwarding.add((mac, public))
    return Entries(frozenset(routes), frozenset(neighbors), frozenset(forwarding))


def observed(namespace: str) -> Entries:
    """Return what a node has on its VXLAN device, the entries of others included."""
    shown = ip_show(
        namespace,
        (
            f"route show dev {DEVICE} proto 79",
            f"route show table {NODE_TABLE}",
            f"neigh show dev {DEVICE} nud permanent",
        ),
    )
    words = [line.split() for line in shown.splitlines()]
    bridge = [line.split() for line in look(namespace, FORWARDING_PART).splitlines()]
    return Entries(
        routes=frozenset((w[0], w[2]) for w in words if w[1:2] == ["via"]),
        neighbors=frozenset((w[0], w[2]) for w in words if w[1:2] == ["lladdr"]),
        forwarding=frozenset((w[0], w[2]) for w in bridge if w[1:2] == ["dst"]),
    )


def free_keys(network: str, prefix_length: int, taken: Iterable[str]) -> list[str]:
    """Return the keys of the network's subnets that overlap none of ``taken``, the last first.

    The last, because the first subnet is not for leases.
    """
    used = {subnet_of(key) for key in taken}
    subnets = IPv4Network(network).subnets(new_prefix=prefix_length)
    free = [str(subnet).replace("/", "-") for subnet in subnets if subnet not in used]
    return free[:0:-1]


def _mac(number: int) -> str:
    return f"02:f1:{number.to_bytes(4, 'big').hex(':')}"


def _facts(value: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(value)
        document["BackendData"]["VtepMAC"], document["PublicIP"]
    except (ValueError, LookupError, TypeError):
        return None
    return dict(document)
