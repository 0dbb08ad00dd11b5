"""Threads of one watch: they end together, and a fault in one of them is nobody's secret."""

import threading
from collections.abc import Callable

from overlay.store.base import StopSignal


class Crew:
    """Threads that are told to end by ``stop``, or by the first of them that fails.

    It is the ``StopSignal`` that they watch.
    """

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._changed = threading.Condition()
        self._running = 0
        self._fault: BaseException | None = None

    def start(self, run: Callable[[], None], name: str) -> None:
        """Begin a thread; any of the crew may."""
        with self._changed:
            self._running += 1
        threading.Thread(target=self._run, args=(run,), name=name, daemon=True).start()

    def join(self, timeout_s: float | None = None) -> None:
        """Return when all threads have ended, or the time has. Raises what the first fault was."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, timeout_s)
        if self._fault is not None:
            raise self._fault

    def is_set(self) -> bool:
        """Return whether to end."""
        return self._fault is not None or self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds for the end; return whether it has come."""
        return self._stop.wait(timeout) or self.is_set()

    def _run(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as exc:  # noqa: BLE001 - the outermost loop of a thread; raised by join
            with self._changed:
                self._fault = self._fault or exc
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
