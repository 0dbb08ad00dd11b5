"""Echoing the probes of others: once each, no more than so many a second, at their size."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from overlay.mesh.wire import MOST_ROWS, Kind, Message, MessageError, Path, Row, pack

_REMEMBERED: Final = 16384  # nonces: of 100 peers' probes a quarter of an hour
_PER_S: Final = 4000.0  # echoes; a search for path MTUs comes in bursts


class Answers:
    """``rows`` tells what this node measured of others; an echo carries some in turn."""

    def __init__(self, rows: Callable[[], Sequence[Row]], clock: Callable[[], float]) -> None:
        self._rows = rows
        self._clock = clock
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._next_row = 0
        self._left = _PER_S
        self._counted_at = clock()

    def echo(self, probe: Message, key: bytes) -> bytes:
        """Return the echo of ``probe`` under the key that it came with.

        Raises MessageError for one that was echoed before, so that what
        somebody recorded makes nobody send, and for too many.
        """
        if probe.nonce in self._seen:
            raise MessageError("replayed")
        now = self._clock()
        self._left = min(_PER_S, self._left + _PER_S * (now - self._counted_at))
        self._counted_at = now
        if self._left < 1:
            raise MessageError("too-many")
        self._left -= 1
        self._seen[probe.nonce] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        rows = self._some_rows() if probe.path in {Path.OVERLAY, Path.UNDERLAY} else ()
        echo = Message(Kind.ECHO, probe.path, probe.target, probe.sender, probe.nonce, 0, rows)
        return pack(echo, key, probe.size)

    def _some_rows(self) -> tuple[Row, ...]:
        rows = self._rows()
        if len(rows) <= MOST_ROWS:
            return tuple(rows)
        first = self._next_row % len(rows)
        self._next_row = first + MOST_ROWS
        return tuple((*rows[first:], *rows[:first])[:MOST_ROWS])
