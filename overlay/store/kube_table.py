"""All nodes of a cluster as one view of leases.

A node whose annotations cannot be read is skipped and named; where it was
read before, its lease stays. What changes in a node beside its lease (and a
kubelet writes there every few minutes) changes no lease.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from overlay.model.address import FAMILIES, Family
from overlay.model.errors import LeaseFormatError
from overlay.model.fabric_key import NO_KEYS, FabricKeys
from overlay.model.lease import Challenge, Lease, LeaseView, SkippedKey
from overlay.model.network import NetworkConfig
from overlay.model.subnet import Subnet
from overlay.store.kube_net_config import NO_CONFIG, NetConfig
from overlay.store.kube_node import CHALLENGE, NodeFacts, attributes_of, challenge_in, subnet_in
from overlay.store.kube_watch import Found

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeState:
    """What one node is to the fabric: a lease, or why there is none, or nothing yet."""

    lease: Lease | None = None
    skipped: SkippedKey | None = None
    challenge: Challenge | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    uid: str
    content: tuple[object, ...]
    asked: str | None
    state: NodeState


class LeaseReader:
    """Parses nodes, each only once while nothing of its lease changes; for all tables of a store.

    The same lease keeps its revision: that of the node's first state that was
    seen with it. What cannot be read is logged once. Any thread may call.
    """

    def __init__(self, own_name: str) -> None:
        self._own_name = own_name
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def read(self, found: Found[NodeFacts], families: tuple[Family, ...]) -> NodeState:
        """Return what ``found`` is to a fabric of ``families``."""
        with self._lock:
            facts = found.value
            if facts is None:
                return NodeState(skipped=SkippedKey(found.key, found.error or "?"))
            known = self._known.get(facts.name)
            if known is not None and known.uid != found.uid:
                known = None
            asked = facts.annotations.get(CHALLENGE)
            content = (_subnet(facts, families), _without_challenge(facts), found.error)
            if known is not None and known.content == content:
                state = known.state
            else:
                state = self._parse(found, facts, families, known)
            is_asked_before = known is not None and known.asked == asked
            challenge = known.state.challenge if known is not None else None
            if not is_asked_before:
                challenge = _challenge(facts, found.revision)
            if challenge is not state.challenge:
                state = replace(state, challenge=challenge)
            self._known[facts.name] = _Known(found.uid, content, asked, state)
            return state

    def retain(self, names: Iterable[str]) -> None:
        """Drop what is known of all nodes but ``names``."""
        with self._lock:
            for name in self._known.keys() - set(names):
                del self._known[name]

    def _parse(
        self,
        found: Found[NodeFacts],
        facts: NodeFacts,
        families: tuple[Family, ...],
        known: _Known | None,
    ) -> NodeState:
        subnet, lease = None, None
        try:
            subnet = subnet_in(facts, families)
            if found.error is not None:
                raise LeaseFormatError(found.error)  # noqa: TRY301 - skipped like any other
            if subnet is None or not facts.is_managed:
                return NodeState()
            attributes = attributes_of(facts, is_own=facts.name == self._own_name)
            lease = Lease(subnet, attributes, facts.created, found.revision)
        except LeaseFormatError as exc:
            log.warning("node %s is skipped: %s", facts.name, exc)
            last = known.state.lease if known is not None else None
            kept = last if last is not None and last.subnet == subnet else None
            key = subnet.key if subnet is not None else facts.name
            return NodeState(kept, SkippedKey(key, str(exc)))
        return NodeState(lease)


class NodeTable:
    """The nodes as of ``revision``. Not for several threads at once."""

    def __init__(self, reader: LeaseReader, own_name: str) -> None:
        self._reader = reader
        self._own_name = own_name
        self._found: dict[str, Found[NodeFacts]] = {}
        self._states: dict[str, NodeState] = {}
        self._families: tuple[Family, ...] = FAMILIES
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
            self._found = dict(objects)
            self._reader.retain(objects)
            self._states = {key: self._read(found) for key, found in objects.items()}
            return True
        is_new = False
        for key in changed:
            before, found = self._states.get(key), objects.get(key)
            if found is None:
                self._found.pop(key, None)
                self._states.pop(key, None)
            else:
                self._found[key] = found
                self._states[key] = self._read(found)
            # Of this node everything counts: it may be what a claim waits for.
            is_new |= self._states.get(key) != before or key == self._own_name
        return is_new

    def set_config(self, config: NetConfig) -> None:
        """Take over the network config; a family that it leaves out leaves the leases."""
        self.config = config
        if config.config is not None and config.config.families != self._families:
            self._families = config.config.families
            self._states = {key: self._read(found) for key, found in self._found.items()}

    def view(self) -> LeaseView:
        """Return what the table now holds; the view does not change any more."""
        leases: dict[str, Lease] = {}
        holders: dict[str, str] = {}
        skipped = [state.skipped for state in self._states.values() if state.skipped is not None]
        for name, state in sorted(self._states.items(), key=_age):
            if state.lease is None:
                continue
            key = state.lease.subnet.key
            if key in leases:
                reason = f"node {name} has the podCIDR {state.lease.subnet} of node {holders[key]}"
                skipped.append(SkippedKey(name, f"{reason}, which is older; delete one of them"))
                continue
            leases[key], holders[key] = state.lease, name
        config, error = self._checked_config()
        return LeaseView(
            revision=self.revision,
            leases=leases,
            config=config,
            config_error=error,
            skipped=tuple(skipped),
            challenges=dict(self._challenges()),
            fabric_keys=self.keys,
        )

    def _challenges(self) -> Iterator[tuple[str, Challenge]]:
        for state in self._states.values():
            asked = state.challenge
            if asked is not None and asked.attributes.owner is not None:
                yield asked.attributes.owner.node_id, asked

    def _checked_config(self) -> tuple[NetworkConfig | None, str | None]:
        """Return the config, or why this node cannot be in that network."""
        config, own = self.config.config, self.own
        if config is None or own is None or not own.pod_cidrs:
            return config, self.config.error
        problem = misfit(own, config)
        return (None, problem) if problem is not None else (config, None)

    def _read(self, found: Found[NodeFacts]) -> NodeState:
        return self._reader.read(found, self._families)


def misfit(facts: NodeFacts, config: NetworkConfig) -> str | None:
    """Return why a node with these podCIDRs cannot be in the network of ``config``, or None."""
    try:
        subnet = subnet_in(facts, config.families)
    except LeaseFormatError as exc:
        return str(exc)
    given = ", ".join(facts.pod_cidrs)
    for family in config.families:
        network = subnet.network(family) if subnet is not None else None
        if network is None:
            return (
                f"node {facts.name} has the podCIDRs {given} and none of {family}; leave that "
                f"family out of the network config, or give the cluster a --cluster-cidr of it"
            )
    if subnet is not None and not config.covers(subnet):
        whole = ", ".join(str(span.network) for span in config.ranges.values())
        return (
            f"podCIDR {given} of node {facts.name} lies outside the network {whole}; write the "
            "cluster's --cluster-cidr into Network (and IPv6Network)"
        )
    return None


_LAST: Final = 1 << 62


def _age(item: tuple[str, NodeState]) -> tuple[int, str]:
    name, state = item
    return (state.lease.create_revision if state.lease is not None else _LAST, name)


def _challenge(facts: NodeFacts, revision: int) -> Challenge | None:
    asked = challenge_in(facts)
    return Challenge(asked, revision) if asked is not None else None


def _subnet(facts: NodeFacts, families: tuple[Family, ...]) -> Subnet | str | None:
    """Return the node's subnet, or what cannot be read in its place."""
    try:
        return subnet_in(facts, families)
    except LeaseFormatError as exc:
        return str(exc)


def _without_challenge(facts: NodeFacts) -> dict[str, str]:
    return {name: text for name, text in facts.annotations.items() if name != CHALLENGE}
