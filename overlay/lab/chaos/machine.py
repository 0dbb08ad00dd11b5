"""What happens to the subject's machine: its address, its clock, its disk.

Rows of the group ``agent``, but for the address, which its lease follows.
"""

import json
import time
from pathlib import Path
from typing import Final

from overlay.lab import netns
from overlay.lab.chaos.agent import GROUP, change, with_peers
from overlay.lab.chaos.cast import LIVING, SUBJECT
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Planted, Skipped
from overlay.lab.chaos.stage import Stage
from overlay.lab.topology import NODE_DEVICE

_FEW: Final = 30
_HIGHER: Final = 100  # the new address, above the old one
_LIBRARY: Final = "libfaketimeMT.so.1"  # of Debian's package libfaketime
_JUMP: Final = "+30d"
_BACK: Final = "the store answers again"


def faults() -> list[Fault]:
    """Return the faults of a machine."""
    return [
        Fault("its address changes", "lease", _moved, rounds=3),
        Fault(
            "its clock jumps by 30 days, leases change",
            GROUP,
            _clock_jumps,
            rounds=3,
            is_lossless=True,
        ),
        Fault(
            "disk of the state directory full, restarted",
            GROUP,
            _full_disk,
            since=FROM_RETURN,
            is_lossless=True,
        ),
    ]


def _moved(stage: Stage) -> Planted:
    key, before = stage.subnet_key(SUBJECT), stage.interface(SUBJECT)
    after = f"{before.ip + _HIGHER}/{before.network.prefixlen}"
    at = time.monotonic()
    _readdress(stage, str(before), after)

    def right() -> bool:
        leases = stage.leases()
        is_told = json.loads(leases[key])["PublicIP"] == after.partition("/")[0]
        return is_told and stage.is_in_step(LIVING, leases)

    def undo() -> None:
        told = stage.log_size(SUBJECT)
        _readdress(stage, after, str(before))
        # Its connections to etcd have been made anew; what comes next is no part of this.
        stage.await_that(lambda: _BACK in stage.logged(SUBJECT, told), "it follows etcd again")

    return Planted(right, at, undo)


def _readdress(stage: Stage, old: str, new: str) -> None:
    gateway = stage.gateway_of(SUBJECT)
    netns.ip_batch(
        stage.namespace(SUBJECT),
        [
            f"addr del {old} dev {NODE_DEVICE}",
            f"addr add {new} dev {NODE_DEVICE}",
            f"route replace default via {gateway} dev {NODE_DEVICE}",
        ],
    )


def _clock_jumps(stage: Stage) -> Planted:
    libraries = sorted(Path("/usr/lib").glob(f"*/faketime/{_LIBRARY}"))
    if not libraries:
        msg = f"no {_LIBRARY}; install the Debian package libfaketime"
        raise Skipped(msg)
    file = stage.lab.dir.path / "clock"
    file.write_text("+0\n")
    stage.restart(
        SUBJECT,
        environment={
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # Linux does not let anybody set that one
        },
    )
    made = with_peers(stage, _FEW)
    told = stage.log_size(SUBJECT)
    file.write_text(f"{_JUMP}\n")
    at = time.monotonic()
    made = change(stage, made)
    leases = stage.leases()
    year_month = time.strftime("%Y-%m", time.localtime(time.time() + 30 * 86400))

    def right() -> bool:
        is_in_step = stage.is_in_step([SUBJECT], leases) and stage.is_ready(SUBJECT)
        # What it logs shows that the clock it reads did jump.
        return is_in_step and year_month in stage.logged(SUBJECT, told)

    def undo() -> None:
        stage.delete(list(made))
        stage.restart(SUBJECT)

    return Planted(right, at, undo)


def _full_disk(stage: Stage) -> Planted:
    made = with_peers(stage, _FEW)
    stage.terminate(SUBJECT)
    made = change(stage, made)
    leases = stage.leases()
    place = stage.lab.dir.node(SUBJECT)
    # In a mount namespace of the agent's own: `ip netns exec` makes one.
    script = (
        f"mount -t tmpfs -o size=16k none {place} && "
        f'{{ head -c 1M /dev/zero > {place}/filler 2>/dev/null || true; }} && exec "$@"'
    )
    at = stage.start(SUBJECT, wrapper=("sh", "-c", script, "sh"))

    def undo() -> None:
        stage.delete(list(made))
        stage.restart(SUBJECT)

    return Planted(lambda: stage.is_in_step([SUBJECT], leases), at, undo)
