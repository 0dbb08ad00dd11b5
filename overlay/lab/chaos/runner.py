"""Plants faults one after the other and times what becomes of them."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Self

from overlay.lab.chaos import (
    access,
    agent,
    certificates,
    connection,
    drift,
    files,
    lease,
    machine,
    policies,
    settings,
    steps,
    store,
)
from overlay.lab.chaos.cast import DUAL_STACK, HOST_GW, SUBJECT, VXLAN, ends, options
from overlay.lab.chaos.fault import DEADLINE_S, Fault, Planted, Round, Row, Skipped
from overlay.lab.chaos.stage import POLL_S, Stage
from overlay.lab.chaos.stream import Stream
from overlay.lab.errors import LabError
from overlay.lab.fabric import Progress, running

_AFTERWARDS_S: Final = 0.1  # in which packets are still counted


def all_faults() -> list[Fault]:
    """Return every fault, those that change least first."""
    parts = (
        drift,
        policies,
        agent,
        files,
        steps,
        machine,
        store,
        connection,
        access,
        certificates,
        lease,
        settings,
    )
    found = [fault for part in parts for fault in part.faults()]
    groups = list(dict.fromkeys(fault.group for part in (drift, agent, store, lease, settings)
                                for fault in part.faults()))  # fmt: skip
    return sorted(found, key=lambda fault: groups.index(fault.group))


class Stages:
    """A stage for one fault after the other: the same, as long as each leaves it as it was."""

    def __init__(self, name: str, outage_s: float, seed: int, progress: Progress) -> None:
        self._name = name
        self._outage_s = outage_s
        self._seed = seed
        self._progress = progress
        self._stack = contextlib.ExitStack()
        self._stage: Stage | None = None
        self._setting = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def get(self, setting: str = VXLAN) -> Stage:
        """Return the stage of a setting, brought up if there is none. Raises LabError."""
        if setting != self._setting:
            self.discard()
        if self._stage is None:
            lab = self._stack.enter_context(running(options(self._name, setting), self._progress))
            stream = self._stack.enter_context(Stream(*ends(lab, setting)))
            stage = Stage(lab, stream, self._outage_s, self._seed, self._progress, setting)
            stage.begin()
            self._stage, self._setting = stage, setting
        return self._stage

    def discard(self) -> None:
        """Take the stage down; repeating it is safe."""
        self._stage = None
        self._stack.close()


def run(
    stages: Stages, faults: Sequence[Fault], rounds: Callable[[Fault], int], progress: Progress
) -> Iterator[Row]:
    """Plant each fault as often as ``rounds`` says; yield its row when it is done."""
    for number, fault in enumerate(faults, start=1):
        row = _row(stages, fault, rounds(fault))
        progress(f"{number}/{len(faults)} {describe(row)}")
        yield row


def _row(stages: Stages, fault: Fault, rounds: int) -> Row:
    done: list[Round] = []
    for _ in range(rounds):
        try:
            done.append(plant(stages, fault))
        except Skipped as exc:
            return Row(fault, tuple(done), str(exc))
        except LabError as exc:
            done.append(Round(None, 0, str(exc)))
        if done[-1].repair_s is None:
            break
    return Row(fault, tuple(done))


def plant(stages: Stages, fault: Fault) -> Round:
    """Plant a fault once, wait until it is repaired, and undo it.

    Raises Skipped, and LabError when the fault cannot be planted or does not
    leave the stage as it was; that stage is discarded.
    """
    stage = stages.get(fault.setting)
    try:
        seen = _plant(stage, fault)
    except LabError as exc:
        left = {node: lines for node, lines in stage.differences().items() if lines}
        reasons = {node: why for node in stage.nodes if (why := stage.reason(node))}
        stages.discard()
        msg = f"{exc} {left or ''} {reasons or ''}".strip()
        raise LabError(msg) from exc
    if seen.repair_s is None:
        stages.discard()
    return seen


def _plant(stage: Stage, fault: Fault) -> Round:
    if fault.group in {drift.GROUP, DUAL_STACK, HOST_GW}:
        stage.calm()
    before = stage.stream.mark()
    planted = fault.plant(stage)
    repair_s, note = _await_repair(planted)
    time.sleep(_AFTERWARDS_S)
    losses = stage.stream.lost(planted.lost_since or before, stage.stream.mark())
    lost, note = losses.on_the_way, "; ".join(filter(None, (note, losses.note)))
    if repair_s is None:
        with contextlib.suppress(LabError):
            note = f"{note} {stage.out_of_step(SUBJECT, stage.leases())}".strip()
            planted.undo()
        return Round(None, lost, note)
    planted.undo()
    stage.await_that(stage.is_whole, "all is as it was before the fault")
    return Round(repair_s, lost, note)


def describe(row: Row) -> str:
    """Return a row in one line, for people who wait."""
    name = row.fault.name
    if row.skipped:
        return f"{name}: skipped, {row.skipped}"
    if row.median_s is None or row.worst_s is None:
        return f"{name}: NOT REPAIRED; {row.note}"
    return (
        f"{name}: {1000 * row.median_s:.0f} ms, worst {1000 * row.worst_s:.0f} ms, {row.lost} lost"
    )


def _await_repair(planted: Planted) -> tuple[float | None, str]:
    """Return the seconds until all is right, and what to know of it."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        # What is seen was so when the look began, at the latest when it ended.
        try:
            is_right = planted.right()
        except LabError as exc:
            return None, str(exc)
        now = time.monotonic()
        if is_right:
            return now - planted.at, planted.told()
        if now > deadline:
            return None, f"not right after {DEADLINE_S:.0f} s"
        time.sleep(POLL_S)
