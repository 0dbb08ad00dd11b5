"""What happens to etcd: away, killed, slow, silent, cut off, put back.

After each the question is the same: a lease that is written once the store
takes writes again must be in the kernels, and so must all that changed
meanwhile.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

from overlay.lab.chaos.agent import change, with_peers
from overlay.lab.chaos.cast import LIVING
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Planted
from overlay.lab.chaos.stage import Stage
from overlay.lab.errors import LabError

GROUP: Final = "store"
TARGET_S: Final = 2.0
# etcd takes no pings more often than every 5 s; ours go every 6 s, with 2 s to answer.
KEEPALIVE_S: Final = 10.0
# The kernel's own probes need no answer of etcd's: 2 s and the news itself. A call that
# goes on another such connection then has 1.7 s; 4.7 s were seen once.
NOTICED_S: Final = 5.0
_FEW: Final = 30
_CPU_MOST: Final = 0.02  # of a core, while the store is away
_CPU_FLOOR_S: Final = 0.1  # to notice that it is away
_UNKNOWN: Final = "not measured"


def faults() -> list[Fault]:
    """Return the faults of etcd itself; forwarding goes on through all of them."""
    told = [
        ("etcd down", _down, "catches up 13 s after"),
        ("etcd killed -9, all members", _killed, _UNKNOWN),
        ("one of three members killed", _member_killed, _UNKNOWN),
        ("the leader killed", _leader_killed, _UNKNOWN),
        ("put back from a backup", _put_back, _UNKNOWN),
    ]
    return [
        *(
            Fault(name, GROUP, plant, flannel, 3, FROM_RETURN, is_lossless=True, target_s=TARGET_S)
            for name, plant, flannel in told
        ),
        Fault(
            "one member hangs (SIGSTOP)",
            GROUP,
            _member_hung,
            rounds=3,
            is_lossless=True,
            target_s=KEEPALIVE_S,
        ),
    ]


def write_when_back(
    stage: Stage, done: Sequence[str] = (), nodes: Sequence[str] = LIVING
) -> Planted:
    """Write a lease as soon as etcd takes it; right is when ``nodes`` have all there is.

    ``done`` are keys to delete afterwards, with the new one.
    """
    made: list[str] = []

    def is_written() -> bool:
        with contextlib.suppress(LabError):
            made[:] = stage.free_keys(1)
            stage.put(stage.fakes(made))
            return True
        return False

    stage.await_that(is_written, "etcd takes writes")
    at, leases = time.monotonic(), stage.leases()
    return Planted(
        right=lambda: stage.is_in_step(nodes, leases),
        at=at,
        undo=lambda: stage.delete([*made, *done]),
    )


def used_percent(stage: Stage, elapse: Callable[[], None]) -> float:
    """Return the processor time that the busiest agent uses meanwhile, in percent of a core.

    Raises LabError where it is more than an agent without a store may use.
    """
    before = {node: stage.cpu_s(node) for node in LIVING}
    began = time.monotonic()
    elapse()
    took_s = time.monotonic() - began
    used_s = max(stage.cpu_s(node) - before[node] for node in LIVING)
    if used_s > _CPU_FLOOR_S + took_s * _CPU_MOST:
        msg = f"an agent used {used_s:.2f} s of CPU in {took_s:.1f} s without its store"
        raise LabError(msg)
    return 100 * used_s / took_s


def _down(stage: Stage) -> Planted:
    stage.etcd.stop()
    percent = used_percent(stage, lambda: time.sleep(stage.outage_s))
    stage.etcd.start()
    planted = write_when_back(stage)
    return _noted(planted, f"for {stage.outage_s:.0f} s; agents used {percent:.1f} % of a core")


def _killed(stage: Stage) -> Planted:
    stage.etcd.kill()
    stage.etcd.start()
    return write_when_back(stage)


def _member_killed(stage: Stage) -> Planted:
    first, second, _ = stage.etcd.members  # agents talk to the first as long as it answers
    stage.etcd.lead(second)
    first.kill()
    return _then(write_when_back(stage), stage.etcd.start)


def _leader_killed(stage: Stage) -> Planted:
    first = stage.etcd.members[0]
    stage.etcd.lead(first)
    began = time.monotonic()
    first.kill()
    planted = write_when_back(stage)
    note = f"etcd took no writes for {planted.at - began:.1f} s"
    return _noted(_then(planted, stage.etcd.start), note)


def _member_hung(stage: Stage) -> Planted:
    first, second, _ = stage.etcd.members
    for node in LIVING:
        stage.restart(node)  # so that they talk to the first
    stage.etcd.lead(second)
    at = time.monotonic()
    first.hang()
    try:
        made = stage.free_keys(1)
        stage.put(stage.fakes(made))
        leases = stage.leases()
    except LabError:
        first.resume()
        raise

    def undo() -> None:
        first.resume()
        stage.delete(made)

    return Planted(lambda: stage.is_in_step(LIVING, leases), at, undo)


def _put_back(stage: Stage) -> Planted:
    made = with_peers(stage, _FEW)
    backup = stage.lab.dir.path / "backup.db"
    backup.unlink(missing_ok=True)
    stage.etcd.snapshot(backup)
    later = change(stage, made)
    stage.etcd.stop()
    stage.etcd.restore(backup)
    stage.etcd.start()
    return write_when_back(stage, list(made | later))


def _noted(planted: Planted, note: str) -> Planted:
    return Planted(planted.right, planted.at, planted.undo, planted.lost_since, note)


def _then(planted: Planted, after: Callable[[], None]) -> Planted:
    def undo() -> None:
        after()
        planted.undo()

    return Planted(planted.right, planted.at, undo, planted.lost_since, planted.note)
