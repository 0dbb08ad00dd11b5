"""When the node's own lease ends, and when something is to be done about it before."""

from collections.abc import Callable
from typing import Final

from overlay.agent.flags import Flags
from overlay.agent.status import Status
from overlay.model.lease import Lease

# etcd counts a lease on a clock of its own; those of two machines differ by 500 ppm at
# most while NTP slews them.
_OF_TTL: Final = 0.999
_LATE_S: Final = 2.0  # for which a view may be older than our own claim
_ASK_AGAIN_S: Final = 60.0  # whether the lease is ours, while the views do not show it
_NEVER_S: Final = float("inf")


class LeaseTimes:
    """Times of one lease, all on ``clock``, in seconds; belongs to the lessee's thread.

    ``renew_at`` is when it is to be renewed, ``ends_at`` when it ends without,
    ``ask_at`` when the store itself is to be asked, because views lack a claim.
    """

    def __init__(self, flags: Flags, status: Status, clock: Callable[[], float]) -> None:
        self._flags = flags
        self._status = status
        self._clock = clock
        self.renew_at = _NEVER_S
        self.ends_at = _NEVER_S
        self.ask_at = _NEVER_S

    @property
    def is_renewal_due(self) -> bool:
        """Return whether the lease is to be renewed now."""
        return self._clock() >= self.renew_at

    @property
    def is_asking_due(self) -> bool:
        """Return whether the store itself is to be asked now."""
        return self._clock() >= self.ask_at

    @property
    def is_over(self) -> bool:
        """Return whether the lease may have run out."""
        return self._clock() >= self.ends_at

    def written(self, own: Lease, asked_at: float) -> None:
        """Begin anew with a lease that the store has written, asked for at a time."""
        due_s = self._flags.lease_ttl_s - self._flags.renew_margin_s
        self.renew_at = _NEVER_S if own.is_permanent else self._clock() + due_s
        self.ask_at = self._clock() + _LATE_S
        self._end_at(self.end_of(own, asked_at))

    def end_of(self, own: Lease, asked_at: float) -> float:
        """Return when a lease that was asked for at a time ends at the earliest.

        The store cannot have begun to count before it was asked.
        """
        return _NEVER_S if own.is_permanent else asked_at + _OF_TTL * self._flags.lease_ttl_s

    def seen(self, own: Lease) -> None:
        """Take note of the lease as a view shows it: it may be permanent now, or so no more."""
        if own.is_permanent and self.ends_at != _NEVER_S:
            self._end_at(_NEVER_S)
            self.renew_at = _NEVER_S
        elif not own.is_permanent and self.ends_at == _NEVER_S:
            # Of a store that was put back; since when it counts is not known.
            self.renew_at = now = self._clock()
            self._end_at(now)

    def shown(self) -> None:
        """Note that views show whose the lease is."""
        self.ask_at = _NEVER_S

    def asked(self) -> None:
        """Note that the store was asked."""
        self.ask_at = self._clock() + _ASK_AGAIN_S

    def _end_at(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self._status.update(lease_ends=ends_at)
