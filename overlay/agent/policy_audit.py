"""The table of policies listed and compared, where the kernel's notices were lost.

To list a large table takes seconds, so that it has a thread of its own: no pod
and no change of a policy waits for it.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from overlay.model.errors import OverlayError
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

_GATHER_S: Final = 1.0  # who loses notices loses some more in the same moment
_PATIENCE_S: Final = 60.0  # at most between tries, while the table changes all the time
_IDLE_S: Final = 3600.0


class TableAudit:
    """``wake`` is for any thread, ``run`` is one of its own.

    ``difference`` says what is not as it was written; ``tell`` hears of it.
    """

    def __init__(self, difference: Callable[[], str | None], tell: Callable[[str], None]) -> None:
        self._difference, self._tell = difference, tell
        self._bell = threading.Event()

    def wake(self) -> None:
        """Have the table compared soon."""
        self._bell.set()

    def run(self, stop: StopSignal) -> None:
        """Compare when asked, until ``stop`` is set."""
        pause_s = _GATHER_S
        while not stop.is_set():
            self._bell.wait(_IDLE_S)
            stop.wait(pause_s)
            self._bell.clear()
            if stop.is_set():
                return
            try:
                found = self._difference()
            except OverlayError as exc:
                log.debug("the table of policies is compared later: %s", exc)
                pause_s = min(2 * pause_s, _PATIENCE_S)
                self._bell.set()
                continue
            pause_s = _GATHER_S
            if found is not None:
                self._tell(found)
