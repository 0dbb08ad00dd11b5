"""One at a time for each key, any number side by side for different ones."""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Turns(Generic[K]):
    """A lock a key, there as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[K, tuple[threading.Lock, int]] = {}

    @contextmanager
    def of(self, key: K) -> Iterator[None]:
        """Wait until nobody else works on ``key``, and keep others waiting meanwhile."""
        with self._lock:
            turn, count = self._turns.get(key, (threading.Lock(), 0))
            self._turns[key] = (turn, count + 1)
        try:
            with turn:
                yield
        finally:
            with self._lock:
                _, count = self._turns[key]
                if count > 1:
                    self._turns[key] = (turn, count - 1)
                else:
                    del self._turns[key]
