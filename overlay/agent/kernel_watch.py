"""Passes on what the kernel tells; a monitor that fails is made anew, and nothing is missed."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from overlay.kernel.base import KernelError
from overlay.kernel.echoes import Echoes
from overlay.kernel.monitor import Monitor
from overlay.kernel.notices import OVERFLOW, Notice
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

_PODS_S: Final = 0.005  # between looks at notices, while all of them are about pods
_PAUSE_S: Final = (0.1, 10.0)  # first and longest, before a monitor is made anew


class Told(Protocol):
    """What a monitor is to its reader: ``overlay.kernel.monitor.Monitor`` fits."""

    own: Echoes | None

    def wait(self, timeout_s: float) -> list[Notice]:
        """Return what was told. Raises KernelError and OSError."""

    def close(self) -> None:
        """Stop listening."""


class KernelWatch:
    """``tell`` gets the notices, ``own`` by what our own changes are known.

    ``poll_s`` is how often the thread shows that it lives.
    """

    def __init__(
        self,
        tell: Callable[[Sequence[Notice]], None],
        own: Callable[[], Echoes | None],
        poll_s: float,
        make: Callable[[], Told] = Monitor,
    ) -> None:
        self._tell, self._own, self._poll_s, self._make = tell, own, poll_s, make
        self._is_anew = False

    def run(self, stop: StopSignal) -> None:
        """Work until ``stop`` is set."""
        pause_s = _PAUSE_S[0]
        while not stop.is_set():
            try:
                with contextlib.closing(self._make()) as monitor:
                    if self._is_anew:
                        self._tell([OVERFLOW])  # it listens by now: nothing falls between
                    while not stop.is_set():
                        self._pass_on(monitor, stop)
                        pause_s = _PAUSE_S[0]
            except (KernelError, OSError) as exc:
                log.warning("what the kernel tells cannot be read, listening anew: %s", exc)
                self._is_anew = True
                stop.wait(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_S[1])

    def _pass_on(self, monitor: Told, stop: StopSignal) -> None:
        monitor.own = self._own()
        notices = monitor.wait(self._poll_s)
        if notices:
            self._tell(notices)
        else:
            # Each pod makes a dozen, one by one: to wake for each would cost a
            # tenth of attaching it.
            stop.wait(_PODS_S)
