"""Ends by signal: raised where it is safe, kept for later where it is not."""

import signal
import subprocess
import sys
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

    def work() -> None:
        with signals.as_exceptions(), signals.deferred():
            with signals.deferred():
                signal.raise_signal(number)
                steps.append("inner work ends")
            steps.append("outer work ends")

    with pytest.raises(raised):
        work()
    assert steps == ["inner work ends", "outer work ends"]


def test_signal_outside_of_such_work_is_raised_at_once() -> None:
    with pytest.raises(SystemExit) as caught, signals.as_exceptions():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM


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


def test_signal_that_lands_in_a_destructor_is_raised_after_it() -> None:
    program = """
import signal, time
from overlay.lab import signals

class Landing:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

with signals.as_exceptions():
    Landing()
    time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
