"""Threads of one watch: they end together, and a fault in one of them is nobody's secret."""

import contextlib
import threading
from collections.abc import Callable
from typing import Final

from overlay.store.base import StopSignal, Watched

_BEAT_S: Final = 30.0  # between signs of life of who waits for the others


class Crew:
    """Threads that are told to end by ``stop``, or by the first of them that fails.

    It is the ``StopSignal`` that they watch. Where ``watched`` (``stop``, if
    there is none) is ``Watched``, each of them that hangs is noticed.
    """

    def __init__(self, stop: StopSignal, watched: StopSignal | None = None) -> None:
        self._stop = stop
        self._watched = stop if watched is None else watched
        self._own = threading.local()  # ``signal``: by which a thread shows that it lives
        self._changed = threading.Condition()
        self._running = 0
        self._fault: BaseException | None = None

    def start(self, run: Callable[[], None], name: str) -> None:
        """Begin a thread; any of the crew may."""
        with self._changed:
            self._running += 1
        threading.Thread(target=self._run, args=(run, name), name=name, daemon=True).start()

    def join(self, timeout_s: float | None = None) -> None:
        """Return when all threads have ended, or the time has. Raises what the first fault was."""
        with self._changed:
            slice_s = _BEAT_S if timeout_s is None else timeout_s
            while not self._changed.wait_for(lambda: not self._running, slice_s):
                self._watched.is_set()
                if timeout_s is not None:
                    break
        if self._fault is not None:
            raise self._fault

    def is_set(self) -> bool:
        """Return whether to end."""
        if (signal := getattr(self._own, "signal", None)) is not None:
            signal.is_set()
        return self._fault is not None or self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds for the end; return whether it has come."""
        self.is_set()
        return self._stop.wait(timeout) or self.is_set()

    def _run(self, run: Callable[[], None], name: str) -> None:
        try:
            with contextlib.ExitStack() as stack:
                if isinstance(self._watched, Watched):
                    self._own.signal = stack.enter_context(self._watched.beside(name))
                run()
        except BaseException as exc:  # noqa: BLE001 - the outermost loop of a thread; raised by join
            with self._changed:
                self._fault = self._fault or exc
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
