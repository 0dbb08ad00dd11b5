"""Ends by signal: raised where it is safe, kept for later where it is not."""

import signal
import threading

import pytest

from overlay.lab import signals


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
def test_signal_waits_for_the_end_of_work_with_threads(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    steps: list[str] = []
    with pytest.raises(raised), signals.as_exceptions():
        with signals.deferred():
            with signals.deferred():
                signal.raise_signal(number)
                steps.append("inner work ends")
            steps.append("outer work ends")
        steps.append("not reached")
    assert steps == ["inner work ends", "outer work ends"]


def test_signal_outside_of_such_work_is_raised_at_once() -> None:
    steps: list[str] = []
    with pytest.raises(SystemExit) as caught, signals.as_exceptions():
        signal.raise_signal(signal.SIGTERM)
        steps.append("not reached")
    assert (caught.value.code, steps) == (128 + signal.SIGTERM, [])


def test_signal_is_raised_once() -> None:
    with pytest.raises(SystemExit), signals.as_exceptions(), signals.deferred():
        signal.raise_signal(signal.SIGTERM)
    with signals.as_exceptions(), signals.deferred():
        pass  # nothing is left over for the next


def test_another_threads_work_defers_nothing() -> None:
    inside, finished = threading.Event(), threading.Event()

    def work() -> None:
        with signals.deferred():
            inside.set()
            finished.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(SystemExit), signals.as_exceptions():
            signal.raise_signal(signal.SIGTERM)
    finally:
        finished.set()
        thread.join()
