"""Whom an agent can measure: peers of our own kind, and where their agents listen."""

from dataclasses import dataclass
from typing import Final

from overlay.agent.status import Snapshot
from overlay.mesh.seal import node_tag
from overlay.model.address import FAMILIES, Family, IPAddress
from overlay.model.lease import Lease
from overlay.plan.planner import Site

# IPv4 20 + UDP 8 (RFC 791, RFC 768); IPv6 40 + UDP 8 (RFC 8200).
UDP_HEADERS: Final = {Family.IPV4: 28, Family.IPV6: 48}  # bytes
# What every link must carry: RFC 791 for a host, RFC 8200 section 5 for a link.
FLOOR: Final = {Family.IPV4: 576, Family.IPV6: 1280}  # bytes


@dataclass(frozen=True, slots=True)
class Peer:
    """One node to measure; ``overlay`` is the address behind its tunnel, None without one."""

    tag: bytes
    name: str
    subnet: str
    family: Family
    underlay: IPAddress
    overlay: IPAddress | None


def peers_of(snapshot: Snapshot) -> dict[bytes, Peer]:
    """Return the peers by tag: all with an agent of ours, held ones included.

    Flannel's nodes have nobody who would answer. Each is measured by one
    family, the first that both nodes have.
    """
    site, view = snapshot.site, snapshot.view
    if site is None or view is None:
        return {}
    held = snapshot.held.leases if snapshot.held is not None else {}
    refused = {problem.about for problem in snapshot.problems}
    found = {}
    for key, lease in {**view.leases, **held}.items():
        owner = lease.attributes.owner
        is_other = key != site.own.subnet.key and key not in refused and not lease.is_vacant
        peer = _peer(site, lease) if is_other and owner is not None else None
        if peer is not None:
            found[peer.tag] = peer
    return found


def _peer(site: Site, lease: Lease) -> Peer | None:
    owner = lease.attributes.owner
    for family in FAMILIES:
        public, network = lease.attributes.public.get(family), lease.subnet.network(family)
        if owner is None or public is None or family not in site.underlay.local:
            continue
        tunnel = site.backend.tunnel
        is_tunneled = tunnel is not None and family in tunnel.devices and network is not None
        overlay = network.network_address if network is not None and is_tunneled else None
        tag = node_tag(owner.node_id)
        return Peer(tag, lease.node, str(lease.subnet), family, public, overlay)
    return None
