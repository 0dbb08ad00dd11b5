"""Running checks: those of this host one after the other, those that ask others side by side."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Finding, Fine, Scope, Unknown, Verdict
from overlay.model.errors import OverlayError

BUDGET_S: Final = 10.0  # for all that ask others; each has deadlines of its own, well below


@dataclass(frozen=True, slots=True)
class Report:
    """What one check said."""

    check: Check
    verdicts: tuple[Verdict, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return what hurts."""
        return tuple(v for v in self.verdicts if isinstance(v, Finding))

    @property
    def status(self) -> str:
        """Return ``finding``, ``unknown`` or ``fine``: the worst of the verdicts."""
        if self.findings:
            return "finding"
        return "unknown" if any(isinstance(v, Unknown) for v in self.verdicts) else "fine"


def run(
    checks: Sequence[Check],
    facts: Facts,
    tell: Callable[[Sequence[str]], None],
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> list[Report]:
    """Return a report for each check, in their order.

    ``tell`` is called with the names of those that are still waited for,
    whenever one has come to its end. Raises what is a fault of ours.
    """
    deadline = clock() + budget_s
    remote = [check for check in checks if check.scope is not Scope.HOST]
    done: queue.Queue[Report | Exception] = queue.Queue()
    for check in remote:
        # Daemons: one that hangs beyond its own deadlines does not keep the program.
        threading.Thread(
            target=_run_into, args=(done, check, facts), name=check.name, daemon=True
        ).start()
    reports = {c.name: run_one(c, facts) for c in checks if c.scope is Scope.HOST}
    waiting = [check.name for check in remote]
    while waiting:
        tell(waiting)
        try:
            report = done.get(timeout=max(0.0, deadline - clock()))
        except queue.Empty:
            break
        if isinstance(report, Exception):
            raise report
        reports[report.check.name] = report
        waiting.remove(report.check.name)
    tell(())
    late = (Unknown(f"no result within {budget_s:g} s"),)
    return [reports.get(check.name, Report(check, late)) for check in checks]


def _run_into(done: "queue.Queue[Report | Exception]", check: Check, facts: Facts) -> None:
    try:
        done.put(run_one(check, facts))
    except Exception as exc:  # noqa: BLE001 - a fault of ours, raised again by run
        done.put(exc)


def run_one(check: Check, facts: Facts) -> Report:
    """Return what one check says; that it cannot tell is a verdict too."""
    verdicts: list[Verdict] = []
    try:
        verdicts.extend(check.run(facts))
    except OverlayError as exc:
        verdicts.append(Unknown(str(exc)))
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        verdicts.append(Unknown(f"{where}{exc.strerror or exc}"))
    return Report(check, tuple(verdicts or [Fine("nothing to look at")]))
