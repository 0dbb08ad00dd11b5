"""Keys that several nodes claim although each is one node's: the first of them has it.

Where the first one leaves, or comes to be younger than another, the next one
has the key. A claim that comes, goes or changes costs as much as claim the
same key: that one alone, as a rule.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from overlay.model.versioned import MapHistory

V = TypeVar("V")

Rank: TypeAlias = int  # the lowest is first; of equal ones, the one whose node's name is


class Claims(Generic[V]):
    """Which node has which key. ``first`` has what the nodes say that have them.

    ``claim`` returns what a node claims now, if anything: a key, the rank among
    those who claim the same, and what it says.
    """

    def __init__(self, claim: Callable[[str], tuple[str, Rank, V] | None]) -> None:
        self._claim = claim
        self._names: dict[str, tuple[str, ...]] = {}  # of the nodes, by the key that they claim
        self.first: MapHistory[str, V] = MapHistory()

    def settle(self, key: str, name: str) -> Sequence[tuple[str, V]]:
        """Look who has ``key`` now that the node ``name`` came, went or changed.

        Return the nodes that claim it, and what they say, the one that has it first.
        """
        found: list[tuple[Rank, str, V]] = []
        for each in {name, *self._names.get(key, ())}:
            claim = self._claim(each)
            if claim is not None and claim[0] == key:
                found.append((claim[1], each, claim[2]))
        if not found:
            self._names.pop(key, None)
            self.first.discard(key)
            return ()
        found.sort(key=lambda it: it[:2])
        self._names[key] = tuple(each for _, each, _ in found)
        self.first.put(key, found[0][2])
        return [(each, value) for _, each, value in found]
