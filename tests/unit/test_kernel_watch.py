"""The thread that hears the kernel outlives monitors that fail, and misses nothing by that."""

from collections.abc import Sequence

from overlay.agent.kernel_watch import KernelWatch
from overlay.kernel.base import KernelError
from overlay.kernel.echoes import Echoes
from overlay.kernel.notices import OVERFLOW, SYSCTL, Notice

Step = list[Notice] | Exception

OURS = Echoes(7)


class Stop:
    """Set once ``script`` is at its end; waits pass at once."""

    def __init__(self, script: list[Step]) -> None:
        self.script, self.waits = script, list[float]()

    def is_set(self) -> bool:
        return not self.script

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


class Monitors:
    """Makes monitors; what each next step brings, or the failure to make one, is the script's."""

    def __init__(self, script: list[Step], failures: int = 0) -> None:
        self.script, self.failures = script, failures
        self.log: list[str] = []
        self.own: Echoes | None = None

    def __call__(self) -> "Monitors":
        if self.failures and len(self.log) > 1:
            self.failures -= 1
            self.log.append("refused")
            raise KernelError("dump: no buffer space")
        self.log.append("made")
        return self

    def wait(self, timeout_s: float) -> list[Notice]:
        assert timeout_s == 60.0
        assert self.own is OURS
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def close(self) -> None:
        self.log.append("closed")

    def tell(self, notices: Sequence[Notice]) -> None:
        self.log += [f"told {notice}" for notice in notices]


def run(script: list[Step], failures: int = 0) -> tuple[list[str], list[float]]:
    monitors, stop = Monitors(script, failures), Stop(script)
    KernelWatch(monitors.tell, lambda: OURS, 60.0, monitors).run(stop)
    return monitors.log, stop.waits


def test_monitor_that_fails_is_made_anew_and_all_is_looked_at_once_it_listens() -> None:
    broken = KernelError("RTM_GETLINK: no buffer space")
    log, waits = run([[OVERFLOW], broken, [SYSCTL]], failures=2)
    assert log == [
        "made", "told overflow", "closed", "refused", "refused",
        "made", "told overflow", "told sysctl", "closed",
    ]  # fmt: skip
    assert waits == [0.1, 0.2, 0.4]


def test_pause_is_short_again_after_a_monitor_that_worked() -> None:
    broken = OSError(9, "Bad file descriptor")
    _, waits = run([broken, broken, broken, [SYSCTL], broken, []])
    assert waits == [0.1, 0.2, 0.4, 0.1, 0.005]
