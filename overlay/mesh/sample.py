"""Which peers are measured where there are too many for all of them."""

import hashlib
import heapq
from bisect import insort
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import Final

MOST_PEERS: Final = 100


def sample(own: bytes, peers: Collection[bytes], epoch: int, most: int = MOST_PEERS) -> list[bytes]:
    """Return the tags of at most ``most`` peers, in order of their tags.

    All where there are no more. Else those that a hash of both tags and
    ``epoch`` names: each node has its own, one peer that comes or goes
    changes one place at most, and every epoch draws anew.
    """
    return Sample(own, most).drawn(peers, epoch)


class Sample:
    """``sample`` of one set of peers after another: one that comes or goes costs little.

    Only where one that is chosen goes all are asked who takes its place.
    """

    def __init__(self, own: bytes, most: int = MOST_PEERS) -> None:
        self._own = own
        self._most = most
        self._epoch = -1
        self._chosen: list[tuple[bytes, bytes]] = []  # hash and tag, in that order
        self._is_whole = True  # all peers are chosen
        self.tags: list[bytes] = []

    def drawn(self, peers: Collection[bytes], epoch: int) -> list[bytes]:
        """Return the tags, drawn from all ``peers``."""
        self._epoch = epoch
        self._is_whole = len(peers) <= self._most
        self._chosen = heapq.nsmallest(self._most, ((self._hash(tag), tag) for tag in peers))
        self.tags = sorted(tag for _, tag in self._chosen)
        return self.tags

    def follow(
        self,
        peers: Collection[bytes],
        come: AbstractSet[bytes],
        gone: AbstractSet[bytes],
        epoch: int,
    ) -> bool:
        """Bring ``tags`` in step with ``peers``; return whether they are others now."""
        before = self.tags
        is_few = self._is_whole or len(peers) <= self._most
        if epoch != self._epoch or (is_few and (come or gone)) or not gone.isdisjoint(before):
            return self.drawn(peers, epoch) != before
        for tag in come:
            insort(self._chosen, (self._hash(tag), tag))
        if come:
            del self._chosen[self._most :]
            self.tags = sorted(tag for _, tag in self._chosen)
        return self.tags != before

    def _hash(self, tag: bytes) -> bytes:
        return hashlib.sha256(self._own + self._epoch.to_bytes(8, "big") + tag).digest()
