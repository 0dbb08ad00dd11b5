"""Whether the agent's threads still go round: by when each last asked whether to stop."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from overlay.store.base import StopSignal


class Heartbeat:
    """A ``Watched`` signal for the thread that makes it; other threads' questions are no beats.

    ``beside`` begins that of another thread, by its name.
    """

    def __init__(
        self,
        stop: StopSignal,
        clock: Callable[[], float],
        beside: Callable[[str], contextlib.AbstractContextManager[StopSignal]],
    ) -> None:
        self._stop, self._clock, self._beside = stop, clock, beside
        self._thread = threading.get_ident()
        self._beat_at = clock()

    def is_set(self) -> bool:
        """Return whether to stop."""
        self._beat()
        return self._stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds for the signal; return whether it is set."""
        self._beat()
        is_set = self._stop.wait(timeout)
        self._beat()
        return is_set

    def beside(self, name: str) -> contextlib.AbstractContextManager[StopSignal]:
        """Return the signal of the calling thread, for as long as the block lasts."""
        return self._beside(name)

    def quiet_s(self) -> float:
        """Return for how long nothing was asked, in seconds; any thread may call it."""
        return self._clock() - self._beat_at

    def _beat(self) -> None:
        if threading.get_ident() == self._thread:
            self._beat_at = self._clock()


class Heartbeats:
    """The heartbeats of several threads by name, each with the longest silence, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._beats: dict[str, tuple[Heartbeat, float]] = {}

    def of(self, name: str, stop: StopSignal, most_s: float) -> Heartbeat:
        """Return the signal to hand to what the calling thread runs."""

        @contextlib.contextmanager
        def beside(other: str) -> Iterator[StopSignal]:
            try:
                yield self.of(other, stop, most_s)
            finally:
                with self._lock:
                    self._beats = {key: each for key, each in self._beats.items() if key != other}

        beat = Heartbeat(stop, self._clock, beside)
        with self._lock:
            self._beats = {**self._beats, name: (beat, most_s)}
        return beat

    def stuck(self) -> Sequence[str]:
        """Return the threads that have been silent for too long, each with for how long."""
        quiet = {name: (beat.quiet_s(), most_s) for name, (beat, most_s) in self._beats.items()}
        return [
            f"{name} for {is_s:.0f} s" for name, (is_s, most_s) in quiet.items() if is_s > most_s
        ]
