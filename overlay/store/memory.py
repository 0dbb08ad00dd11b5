"""A lease store in memory, for one process: tests, simulations, a lab without etcd.

It decides claims with the code that the etcd store uses and refuses what etcd
would refuse. Time is the clock that is passed in.
"""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from overlay.ipam.claim import Adopt, Create, decide
from overlay.ipam.subnets import Choose
from overlay.model.errors import ConfigError
from overlay.model.fabric_key import FABRIC_KEY_BYTES, NO_KEYS, FabricKeys
from overlay.model.lease import Challenge, Lease, LeaseAttributes, LeaseView
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.subnet import Subnet
from overlay.model.versioned import MapHistory
from overlay.store.base import CHALLENGE_TTL_S, KEY_OVERLAP_S, Claim, StopSignal, StoreError
from overlay.store.policy_memory import MemoryPolicyStore
from overlay.store.refusals import checked_config, claimant_of, lost, refusal, reservation_of

_POLL_S: Final = 0.05  # how late a watch notices a stop, and a lease that ran out


class MemoryLeaseStore:
    """Leases in a map, shared by any number of threads.

    ``clock`` returns monotonic seconds, ``choose`` a number below its
    argument. While ``outage`` is set, every call raises it and watches report
    it.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        choose: Choose = secrets.randbelow,
    ) -> None:
        self._clock = clock
        self._choose = choose
        self._condition = threading.Condition(threading.RLock())
        self._leases: MapHistory[str, Lease] = MapHistory()
        self._ends_at: dict[int, float] = {}  # by lease_id
        self._granted: dict[int, int] = {}  # seconds
        self._revision = 1
        self._last_lease_id = 0
        self._config_text: str | None = None
        self._challenges: dict[str, tuple[Challenge, float]] = {}  # and when it ends
        self._keys: FabricKeys = NO_KEYS
        self._overlap_ends_at = 0.0
        self._outage: StoreError | None = None
        self._policies = MemoryPolicyStore()

    @property
    def outage(self) -> StoreError | None:
        """What every call raises now, or None."""
        return self._outage

    @outage.setter
    def outage(self, error: StoreError | None) -> None:
        with self._condition:
            self._outage = error
            self._condition.notify_all()

    def view(self) -> LeaseView:
        """Return everything the store holds. See ``LeaseStore``."""
        with self._open():
            config, config_error = None, None
            if self._config_text is not None:
                try:
                    config = parse_network_config(self._config_text)
                except ConfigError as exc:
                    config_error = str(exc)
            challenges = {key: asked for key, (asked, _) in self._challenges.items()}
            return LeaseView(
                self._revision,
                self._leases.snapshot(),
                config,
                config_error,
                challenges=challenges,
                fabric_keys=self._keys,
            )

    def acquire(self, claim: Claim) -> Lease:
        """Return the node's lease. See ``LeaseStore``."""
        with self._open():
            decision = decide(self.view(), claimant_of(claim), claim.config, self._choose)
            if isinstance(decision, Adopt):
                lease = self._rewrite(decision.lease, claim.attributes, claim.ttl_s)
            elif isinstance(decision, Create):
                lease = self._write(decision.subnet, claim.attributes, self._grant(claim.ttl_s))
            else:
                raise refusal(decision, claim.node)
            for old in decision.release:
                self._delete(old.subnet.key)
            return lease

    def challenge(self, attributes: LeaseAttributes) -> None:
        """Ask for a sign of life. See ``LeaseStore``."""
        with self._open():
            if attributes.owner is not None:
                self._advance()
                asked = Challenge(attributes, self._revision)
                ends_at = self._clock() + CHALLENGE_TTL_S
                self._challenges[attributes.owner.node_id] = (asked, ends_at)

    def renew(self, lease: Lease, attributes: LeaseAttributes, ttl_s: int) -> Lease:
        """Start the lease's time anew. See ``LeaseStore``."""
        with self._open():
            return self._rewrite(self._seen(lease), attributes, ttl_s)

    def release(self, lease: Lease) -> None:
        """Delete the lease as it was seen. See ``LeaseStore``."""
        with self._open():
            self._delete(self._seen(lease).subnet.key)

    def reserve(self, subnet: Subnet, node: str) -> Lease:
        """Keep a subnet for a node, for ever. See ``LeaseStore``."""
        with self._open():
            found = reservation_of(subnet, node, self.view())
            if not isinstance(found, Lease):
                return self._write(subnet, found, 0)
            if found.is_permanent:
                return found
            self._ends_at.pop(found.lease_id, None)
            return self._write(subnet, found.attributes, 0)

    def time_to_live(self, lease: Lease) -> int | None:
        """Return the seconds that the lease has left. See ``LeaseStore``."""
        with self._open():
            if lease.is_permanent:
                return None
            return max(0, int(self._ends_at.get(lease.lease_id, 0) - self._clock()))

    def times_to_live(self, leases: Sequence[Lease]) -> list[int | None]:
        """Return what each lease has left. See ``LeaseStore``."""
        return [self.time_to_live(lease) for lease in leases]

    def granted_ttl(self, lease: Lease) -> int | None:
        """Return the seconds that the lease was granted for. See ``LeaseStore``."""
        with self._open():
            if lease.is_permanent:
                return None
            return self._granted.get(lease.lease_id, 0) if lease.lease_id in self._ends_at else 0

    def write_config(self, text: str, *, force: bool = False) -> NetworkConfig:
        """Write the network config. See ``LeaseStore``."""
        with self._open():
            config = checked_config(text, self.view(), force=force)
            self.put_config(text)
            return config

    def make_fabric_key(self) -> bool:
        """Write a key where there is none. See ``LeaseStore``."""
        with self._open():
            is_first = self._keys.newest is None
            if is_first:
                self._set_keys(FabricKeys(secrets.token_bytes(FABRIC_KEY_BYTES)))
            return is_first

    def rotate_fabric_key(self) -> None:
        """Write a new key. See ``LeaseStore``."""
        with self._open():
            self._overlap_ends_at = self._clock() + KEY_OVERLAP_S
            before = self._keys.newest
            self._set_keys(FabricKeys(secrets.token_bytes(FABRIC_KEY_BYTES), before))

    def watch(
        self,
        deliver: Callable[[LeaseView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Deliver views until ``stop`` is set. See ``LeaseStore``."""
        revision, told = 0, False
        while not stop.is_set():
            view: LeaseView | None = None
            error: StoreError | None = None
            with self._condition:
                try:
                    view = self.view()
                except StoreError as exc:
                    error = exc
                if (view is None and told) or (view is not None and view.revision == revision):
                    self._condition.wait(_POLL_S)
            # Outside the lock, so that a slow receiver holds up nobody.
            if error is not None and not told:
                told = True
                trouble(error)
            if view is not None and told:
                told = False
                trouble(None)
            if view is not None and view.revision != revision:
                revision = view.revision
                deliver(view)

    def policies(self, *, cluster: bool = True) -> MemoryPolicyStore:
        """Return the policies beside the leases."""
        del cluster
        return self._policies

    def reconnect(self) -> None:
        """Do nothing: there is no connection."""

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def put_config(self, text: str | None) -> None:
        """Write any config, as somebody without this program would; None deletes it."""
        with self._condition:
            self._config_text = text
            self._advance()

    def put_lease(
        self, subnet: Subnet, attributes: LeaseAttributes, ttl_s: int | None = None
    ) -> Lease:
        """Write any lease, as flannel or an operator would; without ``ttl_s`` it never ends."""
        with self._condition:
            return self._write(subnet, attributes, 0 if ttl_s is None else self._grant(ttl_s))

    def delete_lease(self, subnet: Subnet) -> None:
        """Delete the lease of ``subnet`` if there is one, whatever it holds."""
        with self._condition:
            if subnet.key in self._leases.snapshot():
                self._delete(subnet.key)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._condition:
            if self._outage is not None:
                raise self._outage
            now = self._clock()
            for key, lease in self._leases.snapshot().items():
                if lease.lease_id and self._ends_at[lease.lease_id] <= now:
                    self._delete(key)
            for node_id, (_, ends_at) in tuple(self._challenges.items()):
                if ends_at <= now:
                    del self._challenges[node_id]
            if self._keys.previous is not None and self._overlap_ends_at <= now:
                self._set_keys(FabricKeys(self._keys.newest))
            yield

    def _set_keys(self, keys: FabricKeys) -> None:
        self._keys = keys
        self._advance()

    def _seen(self, lease: Lease) -> Lease:
        found = self._leases.snapshot().get(lease.subnet.key)
        if found is None or found.mod_revision != lease.mod_revision:
            raise lost(lease)
        return found

    def _rewrite(self, lease: Lease, attributes: LeaseAttributes, ttl_s: int) -> Lease:
        self._ends_at.pop(lease.lease_id, None)
        lease_id = 0 if lease.is_permanent else self._grant(ttl_s)
        return self._write(lease.subnet, attributes, lease_id)

    def _write(self, subnet: Subnet, attributes: LeaseAttributes, lease_id: int) -> Lease:
        self._advance()
        old = self._leases.snapshot().get(subnet.key)
        lease = Lease(subnet, attributes, self._revision, self._revision, lease_id)
        if old is not None:
            lease = dataclasses.replace(lease, create_revision=old.create_revision)
        self._leases.put(subnet.key, lease)
        return lease

    def _delete(self, key: str) -> None:
        lease = self._leases.snapshot()[key]
        self._leases.discard(key)
        self._ends_at.pop(lease.lease_id, None)
        self._advance()

    def _grant(self, ttl_s: int) -> int:
        self._last_lease_id += 1
        self._ends_at[self._last_lease_id] = self._clock() + ttl_s
        self._granted[self._last_lease_id] = ttl_s
        return self._last_lease_id

    def _advance(self) -> None:
        self._revision += 1
        self._condition.notify_all()
