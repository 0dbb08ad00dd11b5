"""Which peers are measured where there are too many for all of them."""

import hashlib
import heapq
from collections.abc import Collection
from typing import Final

MOST_PEERS: Final = 100


def sample(own: bytes, peers: Collection[bytes], epoch: int, most: int = MOST_PEERS) -> list[bytes]:
    """Return the tags of at most ``most`` peers, in order of their tags.

    All where there are no more. Else those that a hash of both tags and
    ``epoch`` names: each node has its own, one peer that comes or goes
    changes one place at most, and every epoch draws anew.
    """
    if len(peers) <= most:
        return sorted(peers)
    seed = own + epoch.to_bytes(8, "big")
    drawn = heapq.nsmallest(most, peers, key=lambda tag: hashlib.sha256(seed + tag).digest())
    return sorted(drawn)
