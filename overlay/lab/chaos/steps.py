"""The subject's agent killed after each single operation of a plan. A row of the group ``agent``.

An agent that ends itself by SIGKILL once it has carried out so many: the
interpreter reads ``sitecustomize`` before anything else, and that wraps the
one place where operations reach the kernel.
"""

import signal
from pathlib import Path
from typing import Final

from overlay.lab.chaos.agent import GROUP, with_peers
from overlay.lab.chaos.cast import SUBJECT
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Planted
from overlay.lab.chaos.stage import Stage
from overlay.lab.errors import LabError

_PEERS: Final = 3  # one goes, one comes back with another MAC, one stays
_MOST: Final = 40  # operations; a plan is done by then
_LEFT: Final = "LEFT_OPERATIONS"
_HOOK: Final = f"""
import os, signal
from overlay.kernel.netlink import NetlinkKernel

left, apply = int(os.environ["{_LEFT}"]), NetlinkKernel.apply

def limited(kernel, ops):
    global left
    ops = list(ops)
    failures = apply(kernel, ops[:left]) if left else ()
    left -= len(ops)
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return failures

NetlinkKernel.apply = limited
"""


def faults() -> list[Fault]:
    """Return the fault; forwarding goes on through all of it."""
    return [
        Fault(
            "kill -9 after each operation of a plan",
            GROUP,
            _killed_at_each,
            since=FROM_RETURN,
            is_lossless=True,
        )
    ]


def _killed_at_each(stage: Stage) -> Planted:
    place = stage.lab.dir.path / "steps"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(_HOOK)
    made = with_peers(stage, _PEERS)
    for done in range(_MOST):
        stage.terminate(SUBJECT)
        made = _turned(stage, made)
        if not _dies_after(stage, done, place):
            break
        _converge(stage)
    else:
        msg = f"the plan has more than {_MOST} operations"
        raise LabError(msg)
    stage.terminate(SUBJECT)
    leases = stage.leases()
    at = stage.start(SUBJECT)
    return Planted(
        right=lambda: stage.is_in_step([SUBJECT], leases) and stage.is_ready(SUBJECT),
        at=at,
        undo=lambda: stage.delete(list(made)),
        note=f"killed after 0 to {done - 1} operations, in step each time",
    )


def _turned(stage: Stage, made: dict[str, bytes]) -> dict[str, bytes]:
    """Of the fake leases delete the first, give the second another MAC, and add one."""
    (gone, _), (moved, value), *rest = made.items()
    stage.delete([gone])
    new = stage.fakes(stage.free_keys(1)) | stage.moved({moved: value})
    stage.put(new)
    return dict(rest) | new


def _dies_after(stage: Stage, operations: int, place: Path) -> bool:
    """Start the agent; return whether it killed itself, False when it got by with fewer."""
    leases = stage.leases()
    environment = {"PYTHONPATH": str(place), _LEFT: str(operations)}
    stage.start(SUBJECT, environment=environment)
    stage.await_that(
        lambda: (
            not stage.is_running(SUBJECT)
            or (stage.is_in_step([SUBJECT], leases) and stage.is_ready(SUBJECT))
        ),
        f"the agent ends after {operations} operations, or is done",
    )
    is_dead = not stage.is_running(SUBJECT)
    if not is_dead:
        stage.signal(SUBJECT, signal.SIGKILL)
    return is_dead


def _converge(stage: Stage) -> None:
    leases = stage.leases()
    stage.start(SUBJECT)
    stage.await_that(
        lambda: stage.is_in_step([SUBJECT], leases) and stage.is_ready(SUBJECT),
        "a new agent puts all right",
    )
