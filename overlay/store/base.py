"""The contract of a lease store, and the errors its callers act on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from overlay.model.errors import OverlayError
from overlay.model.lease import Lease, LeaseAttributes, LeaseView
from overlay.model.network import NetworkConfig
from overlay.model.node import NodeIdentity
from overlay.model.subnet import Subnet

if TYPE_CHECKING:
    from overlay.store.policy_source import PolicySource


class StoreError(OverlayError):
    """The store did not do what it was asked; ``exit_code`` 3 means it could not be used."""

    exit_code = 3


class StoreUnavailableError(StoreError):
    """The store does not answer; the same call may succeed later."""


class StoreAccessError(StoreError):
    """The store answers but lets this client not in: certificate, password or permission."""


class PermissionMissingError(StoreAccessError):
    """The store lets this client in, but not do this one thing."""


class LeaseLostError(StoreError):
    """The lease is no longer what its holder last saw: deleted, expired, or somebody else's."""

    exit_code = 1


class NoFreeSubnetError(StoreError):
    """Every subnet of the range is leased or reserved."""

    exit_code = 1


class DuplicateNodeError(StoreError):
    """Another node holds a lease under this node's identity or public address."""

    exit_code = 6


class ContestedLeaseError(StoreError):
    """``lease`` stands under this node's identity, and may be that of a living twin.

    Ask its holder with ``challenge``; where it shows no life, claim again with
    the lease's revision in ``Claim.assured``.
    """

    exit_code = 6

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        super().__init__(
            f"lease {lease.subnet} stands under this node's identity, written by {lease.node}"
        )


class SubnetTakenError(StoreError):
    """The subnet that was asked for is leased or reserved already."""

    exit_code = 1


class ConfigConflictError(StoreError):
    """A network config would break live leases, or changed while it was written."""

    exit_code = 1


CHALLENGE_TTL_S: Final = 10  # how long a challenge stands, in seconds
KEY_OVERLAP_S: Final = 60  # how long the fabric's key before the newest counts, in seconds


@dataclass(frozen=True, slots=True)
class Claim:
    """What a node asks for.

    ``preferred`` is a subnet that the node had before and would like back.
    ``assured`` are revisions of leases under the node's id that are no twin's.
    ``seen`` is what the node knows of the store, which may save a listing.
    """

    node: NodeIdentity
    config: NetworkConfig
    attributes: LeaseAttributes
    ttl_s: int
    preferred: Subnet | None = None
    assured: frozenset[int] = frozenset()
    seen: LeaseView | None = None


class LeaseStore(Protocol):
    """Leases of one fabric.

    Every call has a deadline and raises StoreUnavailableError or
    StoreAccessError; calls may come from any thread.
    """

    def view(self) -> LeaseView:
        """Return everything the store holds, at one revision."""

    def acquire(self, claim: Claim) -> Lease:
        """Return the node's lease: its own one as it was, a reservation for it, or a new one.

        Own means: claimed under the node's id; or under its public address by
        flannel, which knows no node ids. The attributes are written either
        way and the time to live starts anew. A new claim takes
        ``claim.preferred`` if that is free, else any free subnet at random.
        Repeating it is safe.

        Raises NoFreeSubnetError; DuplicateNodeError when another node holds
        a lease with the same public address; and ContestedLeaseError when the
        lease under its id was written at another address, under another name
        or before another boot, and is not assured.
        """

    def challenge(self, attributes: LeaseAttributes) -> None:
        """Ask whoever holds a lease under the owner of ``attributes`` for a sign of life.

        It shows in the views of all for CHALLENGE_TTL_S; the holder answers by
        renewing its lease. Repeating it asks again.
        """

    def renew(self, lease: Lease, attributes: LeaseAttributes, ttl_s: int) -> Lease:
        """Return the lease with its time to live started anew and ``attributes`` written.

        A permanent lease stays permanent. A value that somebody made
        unreadable is written over while the key is still the one that was
        claimed. Raises LeaseLostError when the store's lease is not the one
        that the caller last saw; nothing is written then.
        """

    def release(self, lease: Lease) -> None:
        """Delete the lease if it is still as it was seen. Raises LeaseLostError otherwise.

        Also when the answer to the deletion was lost and somebody else holds
        the subnet by the time of a second look: the caller's lease is gone
        either way.
        """

    def reserve(self, subnet: Subnet, node: str) -> Lease:
        """Keep a free ``subnet`` for the node of that name or id, for ever.

        For the subnet of a live lease ``node`` may be empty: that lease
        becomes permanent; a subnet that is kept for ``node`` already is
        returned as it is. Raises SubnetTakenError, and UsageError for a
        subnet outside the network or for no subnet of anybody.
        """

    def time_to_live(self, lease: Lease) -> int | None:
        """Return the seconds that the lease has left; None when it is permanent.

        0 when it is over.
        """

    def times_to_live(self, leases: Sequence[Lease]) -> list[int | None]:
        """Return ``time_to_live`` of each, in their order, in less time than one by one."""

    def granted_ttl(self, lease: Lease) -> int | None:
        """Return the seconds that the lease lasts when it was just renewed; None for ever.

        0 when it is over.
        """

    def write_config(self, text: str, *, force: bool = False) -> NetworkConfig:
        """Write the network config, by compare-and-swap with what is there.

        ``text`` is kept to the letter. Raises ConfigError, and
        ConfigConflictError when it would break live leases and ``force`` is
        not set.
        """

    def make_fabric_key(self) -> bool:
        """Write a key of the fabric where there is none; return whether this call did.

        By compare-and-swap, so that of many agents that start at once one
        makes it. Repeating it is safe. It shows in the views of all.
        """

    def rotate_fabric_key(self) -> None:
        """Write a new key of the fabric; the one before counts for KEY_OVERLAP_S more.

        One that was changed less than that ago ends at once. A key that
        cannot be read is written over. Raises ConfigConflictError when
        somebody else changes it in the same moment.
        """

    def watch(
        self,
        deliver: Callable[[LeaseView], None],
        trouble: Callable[[StoreError | None], None],
        stop: "StopSignal",
    ) -> None:
        """Call ``deliver`` with the first view and after every change, until ``stop`` is set.

        What fails is told to ``trouble``, once for each kind of error in a
        row, and retried for ever, with None once it works again; the last view
        stays valid meanwhile. Views go forward in revision, but for a store
        that was itself put back. A lease whose value becomes unreadable stays
        in the view as it last was, with its key in ``skipped``, until the key
        is deleted or readable again. Each call is a watch of its own.
        """

    def policies(self, *, cluster: bool = True) -> "PolicySource":
        """Return the source of the fabric's network policies.

        ``cluster`` says whether ClusterNetworkPolicies are asked for, where
        they are a kind of object of their own.
        """

    def reconnect(self) -> None:
        """Make connections anew: the address that they come from may be gone."""

    def close(self) -> None:
        """Give back connections. Leases stay."""


class StopSignal(Protocol):
    """The part of ``threading.Event`` that a watch needs."""

    def is_set(self) -> bool:
        """Return whether to stop."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds for the signal; return whether it is set."""


@runtime_checkable
class Watched(StopSignal, Protocol):
    """A signal by whose questions a thread shows that it lives."""

    def beside(self, name: str) -> AbstractContextManager[StopSignal]:
        """Return the signal of the calling thread, which works for the same and has a name."""
