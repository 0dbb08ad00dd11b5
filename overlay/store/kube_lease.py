"""What one node of a cluster is to the fabric: a lease, or why there is none.

A node whose annotations cannot be read is skipped and named; where it was
read before, its lease stays. What changes in a node beside its lease (and a
kubelet writes there every few minutes) changes no lease.
"""

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from overlay.model.address import Family
from overlay.model.errors import LeaseFormatError
from overlay.model.lease import Challenge, Lease, SkippedKey
from overlay.model.network import NetworkConfig
from overlay.model.subnet import Subnet
from overlay.store.kube_node import CHALLENGE, NodeFacts, attributes_of, challenge_in, subnet_in
from overlay.store.kube_watch import Found

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeState:
    """What one node is to the fabric: a lease, or why there is none, or nothing yet."""

    lease: Lease | None = None
    skipped: SkippedKey | None = None
    challenge: Challenge | None = None


NOTHING: Final = NodeState()


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

    def forget(self, name: str) -> None:
        """Drop what is known of a node that is gone."""
        with self._lock:
            self._known.pop(name, None)

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
                return NOTHING
            attributes = attributes_of(facts, is_own=facts.name == self._own_name)
            lease = Lease(subnet, attributes, facts.created, found.revision)
        except LeaseFormatError as exc:
            log.warning("node %s is skipped: %s", facts.name, exc)
            last = known.state.lease if known is not None else None
            kept = last if last is not None and last.subnet == subnet else None
            key = subnet.key if subnet is not None else facts.name
            return NodeState(kept, SkippedKey(key, str(exc)))
        return NodeState(lease)


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
