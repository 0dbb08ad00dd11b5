"""Leases in etcd v3, in flannel's format: see docs/architecture.md, "Wire formats"."""

import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from overlay.ipam.claim import Adopt, Create, decide, gives_way
from overlay.ipam.subnets import Choose
from overlay.model.errors import LeaseFormatError
from overlay.model.fabric_key import (
    FABRIC_KEY_BYTES,
    FabricKeyError,
    format_fabric_key,
    parse_fabric_key,
)
from overlay.model.lease import Lease, LeaseAttributes, LeaseView, parse_attributes
from overlay.model.network import NetworkConfig
from overlay.model.subnet import Subnet, parse_subnet_key
from overlay.store.base import (
    CHALLENGE_TTL_S,
    KEY_OVERLAP_S,
    Claim,
    ConfigConflictError,
    StopSignal,
    StoreError,
    StoreUnavailableError,
)
from overlay.store.etcd_config import EtcdConfig
from overlay.store.etcd_connection import Dial, EtcdConnection
from overlay.store.etcd_early import EarlyListing
from overlay.store.etcd_errors import GoneError, OutcomeUnknownError
from overlay.store.etcd_keys import list_all, read_key, subnets_since
from overlay.store.etcd_left import seconds_left
from overlay.store.etcd_table import CONFIG, LeaseReader, LeaseTable
from overlay.store.etcd_watch import EtcdWatch, OpenStream
from overlay.store.etcd_write import EtcdWriter, Seen
from overlay.store.refusals import checked_config, claimant_of, lost, refusal, reservation_of

if TYPE_CHECKING:
    from overlay.store.policy_etcd import EtcdPolicyStore

log = logging.getLogger(__name__)

_ACQUIRE_S: Final = 10.0  # how long races for a subnet may be lost before giving up
_RACE_PAUSE_S: Final = 0.02  # at most, at random, after a race was lost


class EtcdLeaseStore:
    """A ``LeaseStore`` kept in etcd.

    Connections are made when first used, so the constructor does not fail for
    an etcd that is away; it raises UsageError for what cannot be used at all.
    Time, chance and the wire (``dial``, ``open_stream``) are passed in where
    they are not the machine's own.
    """

    def __init__(
        self,
        config: EtcdConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        choose: Choose = secrets.randbelow,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        dial: Dial | None = None,
        open_stream: OpenStream | None = None,
    ) -> None:
        self._clock = clock
        self._choose = choose
        self._sleep = sleep
        self._uniform = uniform
        self._open_stream = open_stream
        self._root = config.root
        self._connection = EtcdConnection(
            config, dial=dial, clock=clock, sleep=sleep, uniform=uniform
        )
        self._reader = LeaseReader(config.root)
        self._writer = EtcdWriter(self._connection, config.root)
        self._early: EarlyListing | None = None

    def list_early(self) -> None:
        """Begin to list, for a watch that is about to begin: the first one takes that over."""
        self._early = EarlyListing(lambda: list_all(self._connection, self._root), self._clock)

    def view(self) -> LeaseView:
        """Return everything the store holds, at one revision. See ``LeaseStore``."""
        return self._table().view()

    def acquire(self, claim: Claim) -> Lease:
        """Return the node's lease. See ``LeaseStore``.

        A race that is lost is run again with what is then free; so is a
        transaction whose answer was lost, for the next listing shows whether
        it was done. StoreUnavailableError after 10 s of that.
        """
        deadline = self._clock() + _ACQUIRE_S
        seen = claim.seen
        while True:
            problem = "lost every race for a subnet"
            try:
                view, seen = seen, None
                if view is None or not self._is_current(view):
                    view = self.view()
                lease = self._acquire_once(claim, view)
                if lease is not None:
                    return lease
            except (GoneError, OutcomeUnknownError) as exc:
                problem = str(exc)
            if self._clock() > deadline:
                msg = f"no lease after {_ACQUIRE_S:.0f} s: {problem}; try again"
                raise StoreUnavailableError(msg)
            self._sleep(self._uniform(0, _RACE_PAUSE_S))

    def challenge(self, attributes: LeaseAttributes) -> None:
        """Ask for a sign of life. See ``LeaseStore``."""
        self._writer.put_challenge(attributes, self._writer.grant(CHALLENGE_TTL_S))

    def renew(self, lease: Lease, attributes: LeaseAttributes, ttl_s: int) -> Lease:
        """Start the lease's time anew. See ``LeaseStore``.

        A value of ours that somebody made unreadable is written over: the key
        is the one that was claimed for as long as it is not created anew.
        """
        seen = _seen(lease)
        renewed = self._rewrite(lease, attributes, ttl_s, seen)
        if renewed is None:
            now = read_key(self._connection, self._writer.subnet_key(lease.subnet))
            if (
                now is not None
                and now.create_revision == lease.create_revision
                and now.lease_id in {0, lease.lease_id}
                and not _is_readable(lease.subnet.key, now.value or b"")
            ):
                renewed = self._rewrite(
                    lease, attributes, ttl_s, Seen(now.mod_revision, now.lease_id)
                )
        if renewed is None:
            raise lost(lease)
        return renewed

    def release(self, lease: Lease) -> None:
        """Delete the lease as it was seen. See ``LeaseStore``."""
        if not self._writer.delete(lease):
            raise lost(lease)

    def reserve(self, subnet: Subnet, node: str) -> Lease:
        """Keep a subnet for a node, for ever. See ``LeaseStore``."""
        deadline = self._clock() + _ACQUIRE_S
        while True:
            view = self.view()
            found = reservation_of(subnet, node, view)
            if not isinstance(found, Lease):
                made = self._writer.create(subnet, found, 0)
                if made is not None and not self._is_overlapped(made, view.revision):
                    return made
                if made is not None:
                    self._writer.delete(made)
            elif found.is_permanent:
                return found
            else:
                made = self._writer.put(subnet, found.attributes, 0, _seen(found))
                if made is not None:
                    self._writer.revoke_unused(found.lease_id)
                    return made
            if self._clock() > deadline:
                msg = f"{subnet} changes too fast to be reserved; try again"
                raise StoreUnavailableError(msg)

    def time_to_live(self, lease: Lease) -> int | None:
        """Return the seconds that the lease has left. See ``LeaseStore``."""
        if lease.is_permanent:
            return None
        answer = self._connection.read(lambda client: client.get_lease_info(lease.lease_id))
        return max(0, int(answer.TTL))  # 0 or -1 when it is over

    def times_to_live(self, leases: Sequence[Lease]) -> list[int | None]:
        """Return what each lease has left: many questions at once. See ``LeaseStore``."""
        ids = {lease.lease_id: None for lease in leases if not lease.is_permanent}
        left = self._connection.read(lambda client: seconds_left(client, ids))
        return [None if lease.is_permanent else left[lease.lease_id] for lease in leases]

    def granted_ttl(self, lease: Lease) -> int | None:
        """Return the seconds that the lease was granted for. See ``LeaseStore``."""
        if lease.is_permanent:
            return None
        answer = self._connection.read(lambda client: client.get_lease_info(lease.lease_id))
        return max(0, int(answer.grantedTTL))

    def write_config(self, text: str, *, force: bool = False) -> NetworkConfig:
        """Write the network config. See ``LeaseStore``."""
        table = self._table()
        config = checked_config(text, table.view(), force=force)
        if not self._writer.put_text(CONFIG, text, table.config_revision):
            msg = "the network config changed while it was written; look at it and try again"
            raise ConfigConflictError(msg)
        return config

    def make_fabric_key(self) -> bool:
        """Write a key where there is none. See ``LeaseStore``."""
        if self._writer.read_fabric_key() is not None:
            return False
        return self._writer.put_fabric_key(_new_key(), None)

    def rotate_fabric_key(self) -> None:
        """Write a new key. See ``LeaseStore``."""
        before = self._writer.read_fabric_key()
        overlap_s = KEY_OVERLAP_S if before is not None and _is_key(before.value or b"") else 0
        if not self._writer.put_fabric_key(_new_key(), before, overlap_s):
            msg = "the fabric's key was changed by somebody else in this moment; try again"
            raise ConfigConflictError(msg)

    def watch(
        self,
        deliver: Callable[[LeaseView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Deliver views until ``stop`` is set. See ``LeaseStore``."""
        early, self._early = self._early, None
        watch = EtcdWatch(
            self._connection,
            LeaseTable(self._reader),
            self._root,
            early=early,
            open_stream=self._open_stream,
            clock=self._clock,
            uniform=self._uniform,
        )
        watch.run(deliver, trouble, stop)

    def policies(self, *, cluster: bool = True) -> "EtcdPolicyStore":
        """Return the policies beside the leases, over the same connections."""
        del cluster
        # What lists leases does not wait for it: 0.03 s.
        from overlay.store.policy_etcd import EtcdPolicyStore

        return EtcdPolicyStore(self._root, self._connection)

    def reconnect(self) -> None:
        """Make connections anew. See ``LeaseStore``."""
        self._connection.reconnect()

    def close(self) -> None:
        """Close the connections. See ``LeaseStore``."""
        self._connection.close()

    def _table(self) -> LeaseTable:
        table = LeaseTable(self._reader)
        table.replace(list_all(self._connection, self._root))
        return table

    def _is_current(self, view: LeaseView) -> bool:
        """Return whether the store still has the leases of ``view``: for a claim, not for ever.

        To ask costs one small answer, where 5,000 leases are 10 pages. Of a
        store that was put back meanwhile revision or number tells.
        """
        state = subnets_since(self._connection, self._root, view.revision)
        known = len(view.leases.keys() | {skipped.key for skipped in view.skipped})
        return state.revision >= view.revision and not state.changed and state.count == known

    def _acquire_once(self, claim: Claim, view: LeaseView) -> Lease | None:
        """Return a lease; None when somebody else was faster, or changed what is to be released."""
        decision = decide(view, claimant_of(claim), claim.config, self._choose)
        if isinstance(decision, Adopt):
            old = decision.lease
            lease = self._rewrite(old, claim.attributes, claim.ttl_s, _seen(old))
        elif isinstance(decision, Create):
            lease = self._claim(decision.subnet, claim, view.revision)
        else:
            raise refusal(decision, claim.node)
        if lease is None:
            return None
        # One that an operator made permanent meanwhile would stay beside the lease for ever.
        are_gone = [self._writer.delete(old) for old in decision.release]
        return lease if all(are_gone) else None

    def _claim(self, subnet: Subnet, claim: Claim, revision: int) -> Lease | None:
        lease_id = self._writer.grant(claim.ttl_s)
        lease = self._writer.create(subnet, claim.attributes, lease_id)
        if lease is None:
            self._writer.revoke(lease_id)
        elif self._is_overlapped(lease, revision):
            log.info("%s overlaps an older lease; another one is claimed", subnet)
            self._writer.delete(lease)
            return None
        return lease

    def _is_overlapped(self, lease: Lease, revision: int) -> bool:
        """Return whether an older lease overlaps ``lease`` that was not there at ``revision``.

        Of two keys that overlap but differ, both can be created.
        """
        others = []
        for found in subnets_since(self._connection, self._root, revision).changed:
            try:
                subnet = parse_subnet_key(self._reader.name(found.key))
            except LeaseFormatError:
                continue
            others.append(Lease(subnet, lease.attributes, found.create_revision))
        return gives_way(lease, others)

    def _rewrite(
        self, lease: Lease, attributes: LeaseAttributes, ttl_s: int, seen: Seen
    ) -> Lease | None:
        """Write over a lease with a new time to live; None if it is not as it was ``seen``."""
        lease_id = 0 if lease.is_permanent else self._writer.grant(ttl_s)
        written = self._writer.put(lease.subnet, attributes, lease_id, seen)
        unused = lease.lease_id if written is not None else lease_id
        if unused:
            self._writer.revoke_unused(unused)
        return written


def _seen(lease: Lease) -> Seen:
    return Seen(lease.mod_revision, lease.lease_id)


def _is_readable(key: str, value: bytes) -> bool:
    try:
        parse_attributes(key, value)
    except LeaseFormatError:
        return False
    return True


def _is_key(value: bytes) -> bool:
    try:
        parse_fabric_key(value)
    except FabricKeyError:
        return False
    return True


def _new_key() -> bytes:
    return format_fabric_key(secrets.token_bytes(FABRIC_KEY_BYTES))
