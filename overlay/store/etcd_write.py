"""Writing keys of etcd: transactions, each of which finds the store as it was seen.

A transaction whose answer is lost is never sent again before a read: it may
have been done.
"""

import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Final

import etcd3.etcdrpc as rpc
from etcd3.transactions import BaseCompare, Create, Delete, Get, Mod, Put

from overlay.model.lease import Lease, LeaseAttributes, format_attributes
from overlay.model.subnet import Subnet
from overlay.store.base import StoreError
from overlay.store.etcd_connection import EtcdConnection
from overlay.store.etcd_errors import GoneError, OutcomeUnknownError
from overlay.store.etcd_keys import prefix_range, read_key
from overlay.store.etcd_table import (
    CHALLENGES,
    FABRIC_KEY,
    FABRIC_KEY_PREVIOUS,
    SUBNETS,
    KeyValue,
)

log = logging.getLogger(__name__)

_NO_V4: Final = "0.0.0.0-0"  # how every key without an IPv4 subnet starts


class Bound(BaseCompare):  # type: ignore[misc]  # etcd3 has no types
    """Compares the etcd lease that a key is bound to.

    An etcd that was put back to a backup gives its revisions out again, so a
    revision alone may name another node's claim; its leases have random ids.
    """

    def build_compare(self, compare: Any) -> None:
        """Write the comparison into etcd's own message."""
        compare.target = rpc.Compare.LEASE
        compare.lease = int(self.value)


@dataclass(frozen=True, slots=True)
class Seen:
    """A key as its writer last saw it; 0 and 0 for one that was not there.

    ``lease_id`` is None where it may be bound to anything.
    """

    mod_revision: int
    lease_id: int | None

    def compare(self, key: bytes) -> list[Any]:
        """Return the conditions under which ``key`` is still as it was seen."""
        conditions = [Mod(key) == self.mod_revision]
        if self.lease_id is not None:
            conditions.append(Bound(key) == self.lease_id)
        return conditions


class EtcdWriter:
    """Compare-and-swap on the keys of one fabric."""

    def __init__(self, connection: EtcdConnection, root: str) -> None:
        self._connection = connection
        self._root = root

    def subnet_key(self, subnet: Subnet) -> bytes:
        """Return the key that a lease of ``subnet`` is kept under."""
        return f"{self._root}{SUBNETS}{subnet.key}".encode()

    def grant(self, ttl_s: int) -> int:
        """Return a new etcd lease; one whose answer was lost ends by itself."""
        return int(self._connection.read(lambda client: client.lease(ttl_s)).id)

    def revoke_unused(self, lease_id: int) -> None:
        """End an etcd lease to which no key is bound; failing costs nothing but its time."""
        with contextlib.suppress(StoreError):
            answer = self._connection.read(lambda client: client.get_lease_info(lease_id))
            if answer.TTL > 0 and not answer.keys:
                self._connection.read(lambda client: client.revoke_lease(lease_id), rounds=1)

    def revoke(self, lease_id: int) -> None:
        """End an etcd lease with all that is bound, or would still be bound, to it."""
        with contextlib.suppress(GoneError):
            self._connection.read(lambda client: client.revoke_lease(lease_id))

    def create(self, subnet: Subnet, attributes: LeaseAttributes, lease_id: int) -> Lease | None:
        """Write a lease where no key starts with the same IPv4 part; None if one does.

        ``10.244.3.0-24`` and ``10.244.3.0-24&fd00:1::-64`` exclude one another.
        A lost answer is cleared up: afterwards the lease is there, or can
        never come.
        """
        key = self.subnet_key(subnet)
        name = subnet.key
        if not name.startswith(f"{_NO_V4}&"):
            name = name.partition("&")[0]
        start, end = prefix_range(f"{self._root}{SUBNETS}{name}")
        value = format_attributes(attributes)
        try:
            found = self._transact(
                [Create(start, range_end=end) == 0],
                [Put(key, value, lease_id), Get(key)],
            )
        except OutcomeUnknownError:
            now = read_key(self._connection, key)
            if now is None or (now.value, now.lease_id) != (value, lease_id):
                # Still under way, perhaps: without its etcd lease it cannot be done.
                if lease_id:
                    self.revoke(lease_id)
                raise
            found = now
        return _lease(subnet, attributes, found)

    def put(
        self, subnet: Subnet, attributes: LeaseAttributes, lease_id: int, seen: Seen
    ) -> Lease | None:
        """Write over a lease that is still as it was ``seen``; None if it is not."""
        key, value = self.subnet_key(subnet), format_attributes(attributes)
        found = self._replace(key, value, lease_id, seen)
        return _lease(subnet, attributes, found)

    def put_text(self, key: str, text: str, seen: int) -> bool:
        """Write over the text of ``key`` if that is still at revision ``seen``, 0 for none."""
        found = self._replace(f"{self._root}{key}".encode(), text.encode(), 0, Seen(seen, None))
        return found is not None

    def put_challenge(self, attributes: LeaseAttributes, lease_id: int) -> None:
        """Write a challenge over whatever was asked before, bound to an etcd lease."""
        owner = attributes.owner
        if owner is not None:
            key = f"{self._root}{CHALLENGES}{owner.node_id}".encode()
            value = format_attributes(attributes)
            self._connection.read(
                lambda client: client.transaction([], [Put(key, value, lease_id)], [])
            )

    def read_fabric_key(self) -> KeyValue | None:
        """Return the fabric's key as it stands, or None."""
        return read_key(self._connection, f"{self._root}{FABRIC_KEY}".encode())

    def put_fabric_key(self, value: bytes, previous: KeyValue | None, overlap_s: int = 0) -> bool:
        """Write the fabric's key if ``previous``, or nothing, stands there yet.

        ``previous`` is kept beside it for ``overlap_s`` seconds.
        """
        key = f"{self._root}{FABRIC_KEY}".encode()
        puts, lease_id = [Put(key, value), Get(key)], 0
        if previous is not None and previous.value is not None and overlap_s:
            lease_id = self.grant(overlap_s)
            kept = f"{self._root}{FABRIC_KEY_PREVIOUS}".encode()
            puts.insert(0, Put(kept, previous.value, lease_id))
        seen = previous.mod_revision if previous is not None else 0
        try:
            is_done = self._transact([Mod(key) == seen], puts) is not None
        except OutcomeUnknownError:
            now = read_key(self._connection, key)
            if now is None or now.mod_revision == seen:
                raise
            is_done = now.value == value
        if not is_done and lease_id:
            self.revoke_unused(lease_id)
        return is_done

    def delete(self, lease: Lease) -> bool:
        """Delete a lease that is still as it was seen; return whether it is gone by that."""
        key = self.subnet_key(lease.subnet)
        compare = Seen(lease.mod_revision, lease.lease_id).compare(key)
        try:
            done, _ = self._connection.write(
                lambda client: client.transaction(compare, [Delete(key)], [])
            )
        except OutcomeUnknownError:
            now = read_key(self._connection, key)
            if now is not None and now.mod_revision == lease.mod_revision:
                raise
            done = now is None
        if done and lease.lease_id:
            self.revoke_unused(lease.lease_id)
        return bool(done)

    def _replace(self, key: bytes, value: bytes, lease_id: int, seen: Seen) -> KeyValue | None:
        try:
            return self._transact(seen.compare(key), [Put(key, value, lease_id), Get(key)])
        except OutcomeUnknownError:
            now = read_key(self._connection, key)
            if now is not None and (now.value, now.lease_id) == (value, lease_id):
                return now
            if (now.mod_revision if now is not None else 0) == seen.mod_revision:
                raise
            return None

    def _transact(self, compare: list[Any], then: list[Any]) -> KeyValue | None:
        """Return the key that ``then`` ends in reading; None if ``compare`` does not hold."""
        done, answers = self._connection.write(lambda client: client.transaction(compare, then, []))
        if not done:
            return None
        value, meta = answers[-1][0]
        return KeyValue(
            key=bytes(meta.key),
            value=bytes(value),
            create_revision=int(meta.create_revision),
            mod_revision=int(meta.mod_revision),
            lease_id=int(meta.lease_id),
        )


def _lease(subnet: Subnet, attributes: LeaseAttributes, found: KeyValue | None) -> Lease | None:
    if found is None:
        return None
    return Lease(subnet, attributes, found.create_revision, found.mod_revision, found.lease_id)
