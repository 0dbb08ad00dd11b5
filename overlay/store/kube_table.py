"""All nodes of a cluster as one view of leases, kept up to date node by node.

A node that changes costs itself, however many there are. Two that have one
podCIDR are one lease, that of the older one; the other one is named.
"""

from collections.abc import Mapping
from itertools import chain

from overlay.model.address import FAMILIES, Family
from overlay.model.fabric_key import NO_KEYS, FabricKeys
from overlay.model.lease import Challenge, Lease, LeaseView, SkippedKey
from overlay.model.network import NetworkConfig
from overlay.store.kube_claims import Claims
from overlay.store.kube_lease import NOTHING, LeaseReader, NodeState, misfit
from overlay.store.kube_net_config import NO_CONFIG, NetConfig
from overlay.store.kube_node import NodeFacts
from overlay.store.kube_watch import Found


class NodeTable:
    """The nodes as of ``revision``. Not for several threads at once."""

    def __init__(self, reader: LeaseReader, own_name: str) -> None:
        self._reader = reader
        self._own_name = own_name
        self._found: dict[str, Found[NodeFacts]] = {}
        self._states: dict[str, NodeState] = {}  # of those that are anything to the fabric
        self._leases = Claims(self._lease_of)
        self._challenges = Claims(self._challenge_of)
        self._unreadable: dict[str, SkippedKey] = {}  # by the node
        self._younger: dict[str, tuple[SkippedKey, ...]] = {}  # by the subnet that others have
        self._told: tuple[SkippedKey, ...] | None = None  # of both; None once they changed
        self._families: tuple[Family, ...] = FAMILIES
        self._checked: tuple[NetworkConfig | None, str | None] | None = None  # None likewise
        self.revision = 0
        self.config: NetConfig = NO_CONFIG
        self.keys: FabricKeys = NO_KEYS

    @property
    def own(self) -> NodeFacts | None:
        """Return this node as it was last seen; None where there is none of its name."""
        found = self._found.get(self._own_name)
        return found.value if found is not None else None

    def take(
        self,
        objects: Mapping[str, Found[NodeFacts]],
        revision: int,
        changed: frozenset[str] | None,
    ) -> bool:
        """Take over nodes as a watch hands them over; return whether the view may differ."""
        self.revision = revision
        if changed is None:
            self._reader.retain(objects)
            for key in self._found.keys() - objects.keys():
                self._take(key, None)
            for key, found in objects.items():
                self._take(key, found)
            return True
        is_new = False
        for key in changed:
            # Of this node everything counts: it may be what a claim waits for.
            is_new |= self._take(key, objects.get(key)) or key == self._own_name
        return is_new

    def set_config(self, config: NetConfig) -> None:
        """Take over the network config; a family that it leaves out leaves the leases."""
        self.config, self._checked = config, None
        if config.config is not None and config.config.families != self._families:
            self._families = config.config.families
            for key, found in self._found.items():
                self._take(key, found)

    def view(self) -> LeaseView:
        """Return what the table now holds; the view does not change any more.

        Costs what changed since the last one.
        """
        if self._told is None:
            skipped = chain(self._unreadable.values(), *self._younger.values())
            self._told = tuple(sorted(skipped, key=lambda each: (each.key, each.reason)))
        if self._checked is None:
            self._checked = self._checked_config()
        config, error = self._checked
        return LeaseView(
            revision=self.revision,
            leases=self._leases.first.snapshot(),
            config=config,
            config_error=error,
            skipped=self._told,
            challenges=self._challenges.first.snapshot(),
            fabric_keys=self.keys,
        )

    def _take(self, name: str, found: Found[NodeFacts] | None) -> bool:
        """Take over one node, None for one that is gone; return whether it is another now."""
        if name == self._own_name:
            self._checked = None
        if found is None:
            self._found.pop(name, None)
            self._reader.forget(name)
            return self._note(name, NOTHING)
        self._found[name] = found
        return self._note(name, self._reader.read(found, self._families))

    def _note(self, name: str, now: NodeState) -> bool:
        before = self._states.pop(name, NOTHING)
        if now != NOTHING:
            self._states[name] = before if now == before else now
        if now == before:
            return False
        for lease in {s.lease.subnet.key: s.lease for s in (before, now) if s.lease}.values():
            self._settle_subnet(lease, name)
        for asked in (before.challenge, now.challenge):
            if asked is not None and asked.attributes.owner is not None:
                self._challenges.settle(asked.attributes.owner.node_id, name)
        if before.skipped != now.skipped:
            self._told = None
            self._unreadable.pop(name, None)
            if now.skipped is not None:
                self._unreadable[name] = now.skipped
        return True

    def _settle_subnet(self, lease: Lease, name: str) -> None:
        """Give a subnet to the oldest of the nodes that have it; the others are skipped."""
        key = lease.subnet.key
        claims = self._leases.settle(key, name)
        younger = tuple(
            SkippedKey(
                each,
                f"node {each} has the podCIDR {lease.subnet} of node {claims[0][0]}, which is "
                "older; delete one of them",
            )
            for each, _ in claims[1:]
        )
        if younger != self._younger.get(key, ()):
            self._told = None
            self._younger.pop(key, None)
            if younger:
                self._younger[key] = younger

    def _lease_of(self, name: str) -> tuple[str, int, Lease] | None:
        lease = self._states.get(name, NOTHING).lease
        return (lease.subnet.key, lease.create_revision, lease) if lease is not None else None

    def _challenge_of(self, name: str) -> tuple[str, int, Challenge] | None:
        """Return whom a node's challenge asks; of several that ask the same, the newest counts."""
        asked = self._states.get(name, NOTHING).challenge
        if asked is None or asked.attributes.owner is None:
            return None
        return asked.attributes.owner.node_id, -asked.mod_revision, asked

    def _checked_config(self) -> tuple[NetworkConfig | None, str | None]:
        """Return the config, or why this node cannot be in that network."""
        config, own = self.config.config, self.own
        if config is None or own is None or not own.pod_cidrs:
            return config, self.config.error
        problem = misfit(own, config)
        return (None, problem) if problem is not None else (config, None)
