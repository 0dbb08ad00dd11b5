"""Whom an agent can measure: peers of our own kind, and where their agents listen."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from overlay.agent.peer_leases import differing_peers, peer_lease, peer_leases
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


class MeshPeers(Mapping[bytes, Peer]):
    """The peers by tag: all with an agent of ours, held ones included.

    Flannel's nodes have nobody who would answer. Each is measured by one
    family, the first that both nodes have. Of two leases of one node the
    younger counts. ``Peer`` is made when somebody asks: most are not measured.
    """

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._keys: dict[bytes, str] = {}
        self._rivals: dict[bytes, set[str]] = {}  # keys, where one node has several leases

    def follow(self, snapshot: Snapshot) -> tuple[set[bytes], set[bytes]]:
        """Take ``snapshot`` for what is; return the tags that came, and those that went.

        Costs what changed, where leases alone did.
        """
        before, self._snapshot = self._snapshot, snapshot
        keys = differing_peers(before, snapshot)
        if keys is None:
            known = set(self._keys)
            self._keys, self._rivals = {}, {}
            for key, lease in peer_leases(snapshot).items():
                self._add(key, self._tag(snapshot, lease))
            return self._keys.keys() - known, known - self._keys.keys()
        touched: dict[bytes, bool] = {}  # and whether it was there
        for key in keys:
            old, new = peer_lease(before, key), peer_lease(snapshot, key)
            if old is new:
                continue
            gone, come = self._tag(snapshot, old), self._tag(snapshot, new)
            for tag in filter(None, (gone, come)):
                touched.setdefault(tag, tag in self._keys)
            self._remove(key, gone)
            self._add(key, come)
        there = {tag for tag in touched if tag in self._keys}
        was_there = {tag for tag, was in touched.items() if was}
        return there - was_there, was_there - there

    def names(self) -> Iterator[tuple[bytes, str]]:
        """Yield tags and names, and make no peer for that."""
        for tag, key in self._keys.items():
            lease = peer_lease(self._snapshot, key)
            if lease is not None:
                yield tag, lease.node

    def __getitem__(self, tag: bytes) -> Peer:
        lease = peer_lease(self._snapshot, self._keys[tag])
        peer = _peer(self._snapshot.site, lease) if lease is not None else None
        if peer is None:
            raise KeyError(tag)
        return peer

    def __contains__(self, tag: object) -> bool:
        return tag in self._keys

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def _tag(self, snapshot: Snapshot, lease: Lease | None) -> bytes | None:
        """Return the tag of a peer; None of one that cannot be measured."""
        owner = lease.attributes.owner if lease is not None else None
        if lease is None or owner is None or snapshot.site is None:
            return None
        return node_tag(owner.node_id) if _family(snapshot.site, lease) is not None else None

    def _add(self, key: str, tag: bytes | None) -> None:
        if tag is None:
            return
        known = self._keys.setdefault(tag, key)
        if known != key:
            self._rivals.setdefault(tag, {known}).add(key)
            self._keys[tag] = self._youngest(self._rivals[tag])

    def _remove(self, key: str, tag: bytes | None) -> None:
        if tag is None:
            return
        rivals = self._rivals.get(tag, set())
        rivals.discard(key)
        if len(rivals) < 2:
            self._rivals.pop(tag, None)
        if rivals:
            self._keys[tag] = self._youngest(rivals)
        else:
            self._keys.pop(tag, None)

    def _youngest(self, keys: Iterable[str]) -> str:
        def age(key: str) -> tuple[int, str]:
            lease = peer_lease(self._snapshot, key)
            return (lease.create_revision if lease is not None else -1, key)

        return max(keys, key=age)


def _family(site: Site, lease: Lease) -> Family | None:
    """Return the first family by which both nodes can be reached."""
    public = lease.attributes.public
    return next((f for f in FAMILIES if f in public and f in site.underlay.local), None)


def _peer(site: Site | None, lease: Lease) -> Peer | None:
    owner = lease.attributes.owner
    family = _family(site, lease) if site is not None else None
    if owner is None or site is None or family is None:
        return None
    tunnel, network = site.backend.tunnel, lease.subnet.network(family)
    is_tunneled = tunnel is not None and family in tunnel.devices and network is not None
    overlay = network.network_address if network is not None and is_tunneled else None
    public = lease.attributes.public[family]
    return Peer(node_tag(owner.node_id), lease.node, str(lease.subnet), family, public, overlay)
