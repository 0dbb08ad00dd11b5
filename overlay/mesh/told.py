"""What other nodes told of their ways, as long as it is new enough to count.

A sender tells some of its rows with each echo, in turn. What it has not told
again for a while it does not measure any more, or nobody hears it: that is
forgotten rather than shown as if it were so now.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from overlay.mesh.sample import MOST_PEERS
from overlay.mesh.wire import Row

# Of a sender's 100 rows each one in 40 comes by an interval's two echoes: that one
# is not told in twelve intervals is rarer than one in 400.
KEPT_INTERVALS: Final = 12


class Told:
    """Rows by who told them; at most MOST_PEERS of a sender, the oldest let go first."""

    def __init__(self) -> None:
        # By sender and target, the rows and when they came, oldest first.
        self._rows: dict[bytes, dict[bytes, tuple[Row, float]]] = {}

    def hear(self, sender: bytes, rows: Iterable[Row], now: float) -> None:
        """Note what ``sender`` told at ``now``, in seconds of any clock."""
        known = self._rows.setdefault(sender, {})
        for row in rows:
            known.pop(row.tag, None)
            known[row.tag] = (row, now)
        while len(known) > MOST_PEERS:
            del known[next(iter(known))]

    def forget(self, before: float) -> None:
        """Drop what was told earlier than ``before``."""
        for sender, known in tuple(self._rows.items()):
            while known and known[oldest := next(iter(known))][1] < before:
                del known[oldest]
            if not known:
                del self._rows[sender]

    def keep(self, senders: Collection[bytes]) -> None:
        """Drop what all others than ``senders`` told."""
        for sender in self._rows.keys() - set(senders):
            del self._rows[sender]

    def rows(self) -> Iterator[tuple[bytes, Row]]:
        """Yield each row behind its sender."""
        for sender, known in self._rows.items():
            for row, _ in known.values():
                yield sender, row
