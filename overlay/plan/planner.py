"""From leases to desired kernel objects, paying only for the leases that changed.

``desired`` is the definition: what one node wants for one set of leases.
``Planner`` holds the last answer and brings it up to date; for any history of
leases it ends with exactly what ``desired`` says (a tested property).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from overlay.model.address import FAMILIES, Family, IPAddress, family_of
from overlay.model.kernel import KernelObject, Key, Route, UnreachableRoute
from overlay.model.lease import Lease
from overlay.model.network import NetworkConfig
from overlay.model.node import Underlay
from overlay.model.versioned import (
    MapHistory,
    SetHistory,
    VersionedMap,
    VersionedSet,
    changed_keys,
)
from overlay.plan.backend import Backend, PeerError
from overlay.plan.networks import Networks


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a lease that keeps it from being a peer."""

    about: str  # the lease's key
    text: str


@dataclass(slots=True)
class Plan:
    """What one node wants. ``peers`` and ``problems`` are keyed by lease key.

    Of a lease that is a peer ``peers`` has what carries packets to it.
    """

    objects: dict[Key, KernelObject] = field(default_factory=dict)
    peers: dict[str, tuple[KernelObject, ...]] = field(default_factory=dict)
    routes_to: Counter[str] = field(default_factory=Counter)  # by device
    _problems: MapHistory[str, Problem] = field(default_factory=MapHistory)
    _senders: dict[IPAddress, int] = field(default_factory=dict)  # peers by what they send from
    _addresses: Mapping[Family, SetHistory[IPAddress]] = field(
        default_factory=lambda: {family: SetHistory() for family in FAMILIES}
    )

    @property
    def problems(self) -> VersionedMap[str, Problem]:
        """Return what keeps leases from being peers: the same object while nothing changes."""
        return self._problems.snapshot()

    def refuse(self, lease: Lease, text: str) -> None:
        """Note why a lease is no peer."""
        key = lease.subnet.key
        self._problems.put(key, Problem(key, f"lease {key} of node {lease.node} {text}"))

    def forgive(self, key: str) -> None:
        """Forget why a lease was no peer, if it was none."""
        self._problems.discard(key)

    def addresses(self) -> Mapping[Family, VersionedSet[IPAddress]]:
        """Return the underlay addresses that peers send from, in sets that stay while equal."""
        return {family: each.snapshot() for family, each in self._addresses.items()}

    def count(
        self, objects: Iterable[KernelObject], addresses: Iterable[IPAddress], change: int
    ) -> None:
        """Note that a peer with these objects, which sends from there, came (1) or went (-1)."""
        for item in objects:
            if isinstance(item, Route):
                self.routes_to[item.device] += change
        for address in addresses:
            left = self._senders.get(address, 0) + change
            if left:
                self._senders[address] = left
            else:
                del self._senders[address]
            if left == 0:
                self._addresses[family_of(address)].discard(address)
            elif left == change:
                self._addresses[family_of(address)].add(address)


@dataclass(frozen=True, slots=True)
class Site:
    """The node that a plan is for."""

    config: NetworkConfig
    backend: Backend
    own: Lease
    underlay: Underlay


def desired(site: Site, leases: Mapping[str, Lease]) -> Plan:
    """Return what the node at ``site`` wants while ``leases`` are all there is.

    A lease that cannot be a peer becomes a problem and changes nothing else.
    Of leases that exclude one another the oldest claim wins.
    """
    planner = Planner(site)
    planner.update(leases)
    return planner.plan


class Planner:
    """Keeps one node's plan in step with the leases."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.plan = Plan()
        self._leases: Mapping[str, Lease] = {}
        self._networks = Networks()
        # Which older lease keeps each loser out ("": this node does), and the losers of each:
        # while that one is a peer nothing else lets them in.
        self._lost_to: dict[str, str] = {}
        self._losers: dict[str, set[str]] = {}
        self._waiting: set[str] = set()  # keys to be tried, in the update that goes on
        self._holders: dict[Key, str] | None = (
            None  # who has a kernel key; from a first conflict on
        )
        spans = site.config.ranges.values()
        rest = [UnreachableRoute(span.network) for span in spans]
        for item in (*site.backend.local(site.own, site.underlay), *rest):
            self.plan.objects[item.key] = item
        self._fresh = set(self.plan.objects)

    def update(self, leases: Mapping[str, Lease]) -> set[Key]:
        """Bring ``plan`` in step with ``leases``; return the kernel keys that may differ now.

        One changed lease costs its own objects, and those of leases that it
        kept out, where ``leases`` remember what changed (``VersionedMap``); a
        comparison of all by identity else.
        """
        touched, self._fresh = self._fresh, set()
        before = self._leases
        self._leases = leases if isinstance(leases, VersionedMap) else dict(leases)
        candidates: list[tuple[tuple[int, str], Lease]] = []
        for key in changed_keys(before, leases):
            known, lease = before.get(key), leases.get(key)
            if lease is known:
                continue
            if known is not None:
                touched |= self._drop(known)
                self._waiting.discard(key)
            if lease is not None:
                candidates.append((_age(lease), lease))
        candidates += self._freed()
        candidates.sort(reverse=True)
        freed: list[tuple[tuple[int, str], Lease]] = []
        while candidates or freed:  # the oldest first: what it displaces frees younger ones alone
            is_next = freed and (not candidates or freed[0] < candidates[-1])
            _, lease = heappop(freed) if is_next else candidates.pop()
            touched |= self._add(lease)
            for each in self._freed():
                heappush(freed, each)
        return touched

    def _freed(self) -> Iterable[tuple[tuple[int, str], Lease]]:
        """Return the losers whose winners were dropped since the last call, with their ages."""
        keys, self._waiting = self._waiting, set()
        return [(_age(lease), lease) for lease in map(self._leases.__getitem__, keys)]

    def _drop(self, lease: Lease) -> set[Key]:
        """Forget a lease; those that it kept out wait to be tried again."""
        key = lease.subnet.key
        self.plan.forgive(key)
        self._admit(key)
        objects = self.plan.peers.pop(key, None)
        if objects is None:
            return set()
        self._networks.remove(lease)
        self.plan.count(objects, self.site.backend.node_addresses(lease), -1)
        keys = {item.key for item in objects}
        for item_key in keys:
            del self.plan.objects[item_key]
            if self._holders is not None:
                del self._holders[item_key]
        for loser in self._losers.pop(key, ()):
            del self._lost_to[loser]
            self.plan.forgive(loser)
            self._waiting.add(loser)
        return keys

    def _add(self, lease: Lease) -> set[Key]:
        try:
            objects = self._objects(lease)
        except PeerError as exc:
            self.plan.refuse(lease, str(exc))
            return set()
        if objects is None:
            return set()
        touched: set[Key] = set()
        rivals = tuple(dict.fromkeys(self._rivals(lease, objects)))
        for rival in rivals:
            is_peer = rival in self.plan.peers
            if not is_peer or _age(self._leases[rival]) < _age(lease):
                holder = f"lease {rival}" if is_peer else "this node"
                self.plan.refuse(lease, f"shares addresses with {holder}, which was there first")
                self._keep_out(lease.subnet.key, rival)
                return touched
        for rival in rivals:  # all younger than this one: they give way
            loser = self._leases[rival]
            touched |= self._drop(loser)
            self.plan.refuse(
                loser, f"shares addresses with lease {lease.subnet.key}, which is older"
            )
            self._keep_out(rival, lease.subnet.key)
        self.plan.peers[lease.subnet.key] = objects
        self._networks.add(lease)
        self.plan.count(objects, self.site.backend.node_addresses(lease), 1)
        for item in objects:
            self.plan.objects[item.key] = item
            touched.add(item.key)
            if self._holders is not None:
                self._holders[item.key] = lease.subnet.key
        return touched

    def _keep_out(self, loser: str, winner: str) -> None:
        self._lost_to[loser] = winner
        self._losers.setdefault(winner, set()).add(loser)

    def _admit(self, key: str) -> None:
        """Forget which lease kept out ``key``, if any did."""
        winner = self._lost_to.pop(key, None)
        if winner is not None:
            self._losers[winner].discard(key)

    def _objects(self, lease: Lease) -> tuple[KernelObject, ...] | None:
        """Return what carries packets to a lease; None where it is no peer by its nature.

        Raises PeerError.
        """
        site = self.site
        if lease.subnet.key == site.own.subnet.key or lease.is_vacant:
            return None
        kind = lease.attributes.backend_type
        if kind != site.config.backend.type:
            msg = f"speaks {kind}, the network {site.config.backend.type}"
            raise PeerError(msg)
        if not site.config.covers(lease.subnet):
            msg = "lies outside the pod network"
            raise PeerError(msg)
        if lease.subnet.overlaps(site.own.subnet):
            msg = f"overlaps this node's subnet {site.own.subnet}"
            raise PeerError(msg)
        for address in lease.attributes.public.values():
            self._check_public(address)
        return tuple(site.backend.peer(site.own, lease, site.underlay))

    def _check_public(self, address: IPAddress) -> None:
        site = self.site
        if address in site.underlay.public.values():
            msg = f"claims this node's own public address {address}"
            raise PeerError(msg)
        if any(
            address.version == span.network.version and address in span.network
            for span in site.config.ranges.values()
        ):
            msg = f"public address {address} lies inside the pod network"
            raise PeerError(msg)

    def _rivals(self, lease: Lease, objects: Iterable[KernelObject]) -> Iterator[str]:
        """Yield lease keys (or "" for this node) that cannot be peers beside ``lease``."""
        yield from self._networks.overlapping(lease)
        for item in objects:
            if item.key in self.plan.objects:
                yield self._holder(item.key)

    def _holder(self, key: Key) -> str:
        if self._holders is None:
            self._holders = {
                item.key: name for name, objects in self.plan.peers.items() for item in objects
            }
        return self._holders.get(key, "")


def _age(lease: Lease) -> tuple[int, str]:
    """Return what orders claims: the store's revision, then the key."""
    return (lease.create_revision, lease.subnet.key)
