"""Leases in the Kubernetes API: each node's podCIDR, and what its agent says in annotations.

Kubernetes gives the subnets, so there is nothing to claim by a race: a claim
writes this node's annotations, compared by resourceVersion and only where
they differ. A lease lasts as long as its Node. See docs/decisions/0009.
"""

import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from overlay.ipam.claim import is_same_place
from overlay.model.address import FAMILIES
from overlay.model.errors import LeaseFormatError, UsageError
from overlay.model.lease import Lease, LeaseAttributes, LeaseView, format_attributes
from overlay.model.network import NetworkConfig
from overlay.model.subnet import Subnet
from overlay.store.base import Claim, ContestedLeaseError, StopSignal, StoreError
from overlay.store.kube_address import AddressCheck
from overlay.store.kube_client import KubeClient, own_namespace
from overlay.store.kube_condition import set_network_available
from overlay.store.kube_config import KubeAccess
from overlay.store.kube_feed import Feed
from overlay.store.kube_lease import LeaseReader, NodeState, misfit
from overlay.store.kube_net_config import NetConfigFile
from overlay.store.kube_node import (
    CHALLENGE,
    WRITTEN,
    NodeFacts,
    annotations_for,
    answers_in,
    challenge_in,
    subnet_in,
)
from overlay.store.kube_nodes import Nodes, NodeWaitingError, refuse_waiting
from overlay.store.kube_policies import KubePolicySource
from overlay.store.kube_secret import NAME, SECRETS, FabricSecret
from overlay.store.kube_table import NodeTable
from overlay.store.kube_watch import Found, KubeWatch, Pace
from overlay.store.refusals import lost, same_address_refusal

log = logging.getLogger(__name__)

_NO_NAMESPACE: Final = "default"  # as everywhere in Kubernetes


class KubeLeaseStore:
    """A ``LeaseStore`` made of the nodes of a Kubernetes cluster.

    Subnets, their reservation and the network config are not this program's
    to write there: ``reserve`` and ``write_config`` raise UsageError with the
    way to do it. Time and chance are passed in.
    """

    def __init__(
        self,
        access: KubeAccess,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        pace: Pace | None = None,
    ) -> None:
        self._access = access
        self._clock = clock
        self._uniform = uniform
        self._pace = pace
        self._client = KubeClient(access, clock)
        self._nodes = Nodes(self._client, access.stem, clock=clock, sleep=sleep, uniform=uniform)
        self._reader = LeaseReader(access.node_name)
        self._config = NetConfigFile(access.net_config_path)
        self._secret = FabricSecret(self._client, self._namespace, clock)
        self._addresses = AddressCheck()
        self._feed: Feed | None = None

    def view(self) -> LeaseView:
        """Return everything the store holds, at one revision. See ``LeaseStore``."""
        table = NodeTable(self._reader, self._access.node_name)
        table.set_config(self._config.read())
        table.take(*self._watch_of_nodes().list_once(), None)
        try:
            table.keys = self._secret.counting(self._secret.read())
        except StoreError as exc:
            log.debug("no key of the fabric: %s", exc)
        return table.view()

    def acquire(self, claim: Claim) -> Lease:
        """Return the node's lease. See ``LeaseStore``.

        Raises NodeWaitingError until the node is there and has its podCIDRs,
        and StoreError for podCIDRs that do not fit the network.
        """
        feed, name = self._feed, claim.node.name
        if feed is not None and feed.is_fresh and name == self._access.node_name:
            # Without asking: each change of any node wakes the claimant.
            own = _place_of(refuse_waiting(feed.own, name), claim.config)
            if feed.last is not None:
                self._refuse_address(claim, own, feed.last.leases)
        lease = self._nodes.written(lambda: self._acquire_once(claim))
        self._addresses.forget()
        return lease

    def challenge(self, attributes: LeaseAttributes) -> None:
        """Ask for a sign of life. See ``LeaseStore``."""
        if attributes.owner is None:
            return
        # What stands there twice would be no news; nobody reads what is in front.
        text = format_attributes(attributes).decode()
        asked = f'{{"Asked":"{secrets.token_hex(8)}",{text[1:]}'
        self._nodes.annotate(attributes.owner.node_name, {CHALLENGE: asked}, None)

    def renew(self, lease: Lease, attributes: LeaseAttributes, ttl_s: int) -> Lease:
        """Write ``attributes`` where they differ. See ``LeaseStore``; a lease here has no time."""
        del ttl_s

        def once() -> Lease:
            found, facts, stored = self._seen(lease, _holder(attributes))
            asked = challenge_in(facts)
            must_answer = asked is not None and not is_same_place(attributes, asked)
            answers = answers_in(facts) + must_answer
            return self._write(found, facts, stored.subnet, attributes, answers)

        return self._nodes.written(once)

    def release(self, lease: Lease) -> None:
        """Remove the node's annotations while they are as they were seen. See ``LeaseStore``."""
        name = _holder(lease.attributes) or self._holder_of(lease)

        def once() -> None:
            found, facts, _ = self._seen(lease, name)
            gone = {key: None for key in WRITTEN if key in facts.annotations}
            self._nodes.annotate(name, gone, found)

        self._nodes.written(once)

    def reserve(self, subnet: Subnet, node: str) -> Lease:
        """Raise UsageError: who has which subnet is Kubernetes' to say."""
        msg = (
            f"{subnet} cannot be kept for {node or 'a node'}: in Kubernetes a node's subnet is its "
            "Node.spec.podCIDRs; register the Node with spec.podCIDRs of your choice instead"
        )
        raise UsageError(msg)

    def time_to_live(self, lease: Lease) -> int | None:
        """Return None: a lease lasts as long as its Node. See ``LeaseStore``."""
        del lease
        return None

    def times_to_live(self, leases: Sequence[Lease]) -> list[int | None]:
        """Return what each lease has left. See ``LeaseStore``."""
        return [self.time_to_live(lease) for lease in leases]

    def granted_ttl(self, lease: Lease) -> int | None:
        """Return None: a lease lasts as long as its Node. See ``LeaseStore``."""
        del lease
        return None

    def write_config(self, text: str, *, force: bool = False) -> NetworkConfig:
        """Raise UsageError: the config is a file that Kubernetes mounts."""
        del text, force
        msg = (
            f"in Kubernetes the network config is the file {self._config.path} (--net-config-path)"
            ": change the config map that it is mounted from; agents follow within two minutes"
        )
        raise UsageError(msg)

    def make_fabric_key(self) -> bool:
        """Write a key where there is none. See ``LeaseStore``."""
        return self._secret.make()

    def rotate_fabric_key(self) -> None:
        """Write a new key. See ``LeaseStore``."""
        self._secret.rotate()

    def set_network_available(self) -> bool:
        """Say in this node's conditions that it has a network; return whether that was news."""
        return set_network_available(self._client, self._access.node_name)

    def watch(
        self,
        deliver: Callable[[LeaseView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Deliver views until ``stop`` is set. See ``LeaseStore``."""
        table = NodeTable(self._reader, self._access.node_name)
        feed = Feed(table, self._config, self._secret, deliver)
        keys = KubeWatch(
            self._client,
            SECRETS,
            namespace=self._namespace(),
            selectors={"fieldSelector": f"metadata.name={NAME}"},
            pace=self._pace,
            uniform=self._uniform,
            clock=self._clock,
        )
        self._feed = feed
        try:
            feed.run(self._watch_of_nodes(), keys, trouble, stop)
        finally:
            self._feed = None

    def policies(self, *, cluster: bool = True) -> KubePolicySource:
        """Return the policies of the cluster. See ``LeaseStore``."""
        return KubePolicySource(
            self._client,
            self._access.node_name,
            cluster=cluster,
            pace=self._pace,
            uniform=self._uniform,
            clock=self._clock,
        )

    def reconnect(self) -> None:
        """Make connections anew. See ``LeaseStore``."""
        self._client.reconnect()

    def close(self) -> None:
        """Close the connections. See ``LeaseStore``."""
        self._client.close()

    def _namespace(self) -> str:
        try:
            return own_namespace(self._access)
        except StoreError:
            return _NO_NAMESPACE  # the first request says what is wrong with the way in

    def _watch_of_nodes(self) -> KubeWatch[NodeFacts]:
        return KubeWatch(
            self._client,
            self._nodes.kind,
            pace=self._pace,
            uniform=self._uniform,
            clock=self._clock,
            is_vital=True,
        )

    def _acquire_once(self, claim: Claim) -> Lease:
        name, config = claim.node.name, claim.config
        found, facts = self._nodes.get(name)
        subnet = _place_of(facts, config)
        stored = self._state(found, config).lease
        if stored is not None and _may_be_a_twins(stored, claim):
            raise ContestedLeaseError(stored)
        view = self._feed.last if self._feed is not None else None
        self._refuse_address(claim, subnet, (view if view is not None else self.view()).leases)
        return self._write(found, facts, subnet, claim.attributes, answers_in(facts))

    def _refuse_address(self, claim: Claim, own: Subnet, leases: Mapping[str, Lease]) -> None:
        """Raise DuplicateNodeError when another node stands under one of our addresses."""
        clash = self._addresses.clash(leases, claim.attributes.public, own)
        if clash is not None:
            raise same_address_refusal(claim.node, clash)

    def _write(
        self,
        found: Found[NodeFacts],
        facts: NodeFacts,
        subnet: Subnet,
        attributes: LeaseAttributes,
        answers: int,
    ) -> Lease:
        """Write what differs; return the lease as it then stands. Raises ConflictError."""
        try:
            wanted = annotations_for(attributes, facts, answers)
        except LeaseFormatError as exc:
            raise StoreError(str(exc)) from exc
        if CHALLENGE in facts.annotations:
            wanted[CHALLENGE] = None
        changes = {k: v for k, v in wanted.items() if facts.annotations.get(k) != v}
        if changes:
            found = self._nodes.annotate(facts.name, changes, found)
        stored = self._state(found).lease
        if stored is None:
            msg = f"node {facts.name}: what was written into its annotations does not stand there"
            raise StoreError(msg)
        return Lease(subnet, attributes, stored.create_revision, stored.mod_revision)

    def _seen(self, lease: Lease, name: str) -> tuple[Found[NodeFacts], NodeFacts, Lease]:
        """Return node and lease as they stand. Raises LeaseLostError if not as it was seen.

        A lease that somebody made unreadable is the one that it was before.
        """
        try:
            found, facts = self._nodes.get(name or self._access.node_name)
        except NodeWaitingError as exc:
            raise lost(lease) from exc
        state = self._state(found)
        stored = state.lease
        if stored is None or stored.subnet != lease.subnet:
            raise lost(lease)
        if state.skipped is None and stored.mod_revision != lease.mod_revision:
            raise lost(lease)
        return found, facts, stored

    def _state(self, found: Found[NodeFacts], config: NetworkConfig | None = None) -> NodeState:
        known = config if config is not None else self._config.read().config
        return self._reader.read(found, known.families if known is not None else FAMILIES)

    def _holder_of(self, lease: Lease) -> str:
        """Return the node that has the podCIDR of a lease of flannel's."""
        objects, _ = self._watch_of_nodes().list_once()
        for found in objects.values():
            stored = self._state(found).lease
            if stored is not None and stored.subnet == lease.subnet:
                return found.key
        raise lost(lease)


def _place_of(facts: NodeFacts, config: NetworkConfig) -> Subnet:
    """Return the subnet that a node has in the network. Raises StoreError."""
    problem = misfit(facts, config)
    subnet = subnet_in(facts, config.families) if problem is None else None
    if subnet is None:
        raise StoreError(problem or f"node {facts.name} has no podCIDR")
    return subnet


def _may_be_a_twins(stored: Lease, claim: Claim) -> bool:
    """Return whether another agent under the claimant's name may have written the lease."""
    if stored.attributes.owner is None or stored.mod_revision in claim.assured:
        return False
    return not is_same_place(claim.attributes, stored.attributes)


def _holder(attributes: LeaseAttributes) -> str:
    return attributes.owner.node_name if attributes.owner is not None else ""
