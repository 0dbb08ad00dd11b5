"""A fact that is read when it is first asked for, once, by whichever thread asks."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from overlay.model.errors import OverlayError

T = TypeVar("T")


class Lazy(Generic[T]):
    """Holds what ``read`` returned, or the OverlayError that it raised, for all who ask."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._known: list[T] = []
        self._error: OverlayError | None = None

    def __call__(self) -> T:
        """Return the fact. Raises the OverlayError of its reading, each time anew."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if not self._known:
                try:
                    self._known.append(self._read())
                except OverlayError as exc:
                    self._error = exc
                    raise
            return self._known[0]
