"""Two nodes under one identity: a cloned host, or this node with a new address?

A lease under this node's id that was written from elsewhere may be its own, or
that of a living twin. Its holder is asked for a sign of life and answers by
renewing; the second of two refuses, the first works on (decision 0007).
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final

from overlay.ipam.claim import Claimant, is_same_place, rival_of, same_address
from overlay.model.lease import Lease, LeaseAttributes, LeaseView
from overlay.model.node import NodeIdentity
from overlay.store.base import DuplicateNodeError, LeaseStore
from overlay.store.refusals import (
    TWIN_WAY_OUT,
    same_address_refusal,
    shown_addresses,
    twin_refusal,
)

log = logging.getLogger(__name__)

# A holder's answer takes the way of an event and two calls; where one call is
# slow, that much longer is waited.
_WAIT_S: Final = 2.0
_WAIT_CALLS: Final = 4
_CALL_MOST_S: Final = 5.0  # what takes longer was this machine, which stood still
_REFUSED_S: Final = 30.0  # after a sign of life, until the same question is asked again


class Twins:
    """What one node knows of others under its identity; belongs to the lessee's thread.

    ``decide_at`` is when the wait for a sign of life is over, on ``clock``.
    """

    def __init__(self, store: LeaseStore, node: NodeIdentity, clock: Callable[[], float]) -> None:
        self._store = store
        self._node = node
        self._clock = clock
        self._doubted: Lease | None = None
        self._written: list[LeaseAttributes] = []
        self._ask_again_at = float("-inf")
        self.decide_at = float("inf")

    @property
    def is_asking(self) -> bool:
        """Return whether a holder was asked and the claim is not made yet."""
        return self._doubted is not None

    def ask(self, lease: Lease, attributes: LeaseAttributes) -> None:
        """Ask the holder of ``lease`` for a sign of life, in the name of ``attributes``.

        Raises DuplicateNodeError when it was asked before and has given one.
        """
        doubted = self._doubted
        self.forget()
        if doubted is not None and _is_renewed(doubted, lease):
            raise self._refusal(attributes, lease)
        if self._clock() < self._ask_again_at:
            raise twin_refusal(attributes, lease)
        log.warning(
            "lease %s stands under this node's identity %s, written by %s (%s); asking whether "
            "that node is alive",
            lease.subnet,
            self._node.id,
            lease.node,
            shown_addresses(lease.attributes),
        )
        begun_at = self._clock()
        self._store.challenge(attributes)
        now = self._clock()
        self._doubted = lease
        self.decide_at = now + _WAIT_S + _WAIT_CALLS * min(now - begun_at, _CALL_MOST_S)

    def is_waiting(self, view: LeaseView, attributes: LeaseAttributes) -> bool:
        """Return whether a sign of life may still come.

        Raises DuplicateNodeError when it is in ``view``.
        """
        doubted = self._doubted
        if doubted is None:
            return False
        stored = view.leases.get(doubted.subnet.key)
        if stored is not None and _is_renewed(doubted, stored):
            self.forget()
            raise self._refusal(attributes, stored)
        return self._clock() < self.decide_at

    def assured(self) -> frozenset[int]:
        """Return the revision of the lease whose holder was asked and showed no life, if any."""
        return frozenset() if self._doubted is None else frozenset({self._doubted.mod_revision})

    def forget(self) -> None:
        """Be done with asking: an answer is good for one claim only."""
        self._doubted = None
        self.decide_at = float("inf")

    def must_answer(self, view: LeaseView, own: Lease) -> bool:
        """Return whether a twin asks for a sign of life that ``own`` has not given yet."""
        asked = view.challenges.get(self._node.id)
        if (
            asked is None
            or asked.mod_revision < own.mod_revision
            or is_same_place(own.attributes, asked.attributes)
        ):
            return False
        twin = asked.attributes.owner
        log.warning(
            "node %s (%s) starts under the identity %s of this node; it is told that this one "
            "lives, and refuses: %s",
            twin.node_name if twin is not None else "?",
            shown_addresses(asked.attributes),
            self._node.id,
            TWIN_WAY_OUT,
        )
        return True

    def will_write(self, attributes: LeaseAttributes) -> None:
        """Note what is about to be written: the answer to a write may be lost."""
        if attributes not in self._written:
            self._written.append(attributes)

    def has_written(self, attributes: LeaseAttributes) -> None:
        """Note what now stands in the store."""
        self._written = [attributes]
        self._ask_again_at = float("-inf")

    def is_taken_over(self, stored: Lease, own: Lease) -> bool:
        """Return whether our lease is as another node under our identity would write it.

        Or as this one did long ago, where the store was put back: only a
        question tells.
        """
        ours = (own.attributes, *self._written)
        return not any(is_same_place(each, stored.attributes) for each in ours)

    def refuse_address(self, attributes: LeaseAttributes, leases: Iterable[Lease]) -> None:
        """Raise DuplicateNodeError when another node's lease has an address of ``attributes``."""
        clash = same_address(leases, Claimant(self._node, attributes.public))
        if clash is not None:
            raise same_address_refusal(self._node, clash)

    def refuse_second(self, own: Lease, view: LeaseView) -> None:
        """Raise DuplicateNodeError when of two that claimed in one moment the other was first."""
        rival = rival_of(own, view.leases.values())
        if rival is None:
            return
        self.refuse_address(own.attributes, [rival])
        raise twin_refusal(own.attributes, rival)

    def _refusal(self, attributes: LeaseAttributes, lease: Lease) -> DuplicateNodeError:
        """Return the error after a sign of life, and ask no more for a while."""
        self._ask_again_at = self._clock() + _REFUSED_S
        return twin_refusal(attributes, lease)


def _is_renewed(before: Lease, now: Lease) -> bool:
    """Return whether the same holder has written the lease again since ``before``."""
    mine, theirs = before.attributes.owner, now.attributes.owner
    return (
        before.subnet == now.subnet
        and now.mod_revision > before.mod_revision
        and mine is not None
        and theirs is not None
        and mine.node_id == theirs.node_id
    )
