"""Echoing the probes of others: once each, no more than so many a second, at their size."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from overlay.mesh.wire import MOST_ROWS, Kind, Message, MessageError, Path, Row, pack

_REMEMBERED: Final = 16384  # nonces: of 100 peers' probes a quarter of an hour
_PER_S: Final = 4000.0  # echoes; a search for path MTUs comes in bursts


class Answers:
    """``row`` tells what this node measured of one of ``tags``; an echo carries some in turn."""

    def __init__(
        self,
        tags: Callable[[], Sequence[bytes]],
        row: Callable[[bytes], Row],
        clock: Callable[[], float],
    ) -> None:
        self._tags = tags
        self._row = row
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
        tags = self._tags()
        if len(tags) > MOST_ROWS:
            first = self._next_row % len(tags)
            self._next_row = first + MOST_ROWS
            tags = [*tags[first : first + MOST_ROWS], *tags[:first]][:MOST_ROWS]
        return tuple(self._row(tag) for tag in tags)
