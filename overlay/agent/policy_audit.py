"""What policies stand on, looked at again where no notice of the kernel's tells of a change.

The table is listed and compared where notices were lost, and settings that
raise no notice are read every few seconds. To list a large table takes long,
so that it has a thread of its own: no pod and no policy waits for it.
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
_EVERY_S: Final = 5.0


class TableAudit:
    """``wake`` is for any thread, ``run`` is one of its own.

    ``difference`` says what is not as it was written; ``tell`` hears of it.
    ``check`` puts right what is no part of the table.
    """

    def __init__(
        self,
        difference: Callable[[], str | None],
        tell: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:
        self._difference, self._tell, self._check = difference, tell, check
        self._bell = threading.Event()

    def wake(self) -> None:
        """Have the table compared soon."""
        self._bell.set()

    def run(self, stop: StopSignal) -> None:
        """Compare when asked, until ``stop`` is set."""
        pause_s = _GATHER_S
        while not stop.is_set():
            is_asked = self._bell.wait(_EVERY_S)
            if is_asked:
                stop.wait(pause_s)
                self._bell.clear()
            if stop.is_set():
                return
            try:
                self._check()
                found = self._difference() if is_asked else None
            except OverlayError as exc:
                log.debug("policies are looked at again later: %s", exc)
                pause_s = min(2 * pause_s, _PATIENCE_S)
                if is_asked:
                    self._bell.set()
                continue
            pause_s = _GATHER_S
            if found is not None:
                self._tell(found)
