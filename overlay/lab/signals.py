"""Ends by signal that still clean up."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S: Final = 0.02


class _Deferral:
    """Whether the main thread may be interrupted now, and by what it was meanwhile."""

    depth = 0
    waiting: int | None = None


@contextlib.contextmanager
def as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit inside the block, SIGINT KeyboardInterrupt.

    Not inside ``deferred``: there they wait for its end. Only for the main thread.
    """
    raised: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        raised[:] = [number]
        if _Deferral.depth:
            _Deferral.waiting = number
        else:
            _raise(number)

    def again(_: int, frame: FrameType | None) -> None:
        end(raised[-1], frame)

    def unraisable(lost: "UnraisableHookArgs") -> None:
        # Python drops what is raised in a weak reference's callback or in a
        # destructor, wherever the signal happened to find the main thread.
        if raised and isinstance(lost.exc_value, SystemExit | KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            hook(lost)

    before = {number: signal.signal(number, end) for number in _ENDS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, again)
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let what ``as_exceptions`` would raise wait for the end of the block.

    For work with threads: an exception that lands while the main thread takes a
    lock which it shares with them leaves it locked, and they wait for ever. What
    is started inside has its signals as ever, unlike in ``held``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    _Deferral.depth += 1
    try:
        yield
    finally:
        _Deferral.depth -= 1
        if not _Deferral.depth and (number := _Deferral.waiting) is not None:
            _Deferral.waiting = None
            _raise(number)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Put SIGINT, SIGTERM and SIGHUP off to the end of the block: clean-up is not cut short."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(_ENDS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
