"""What happens to the subject's agent: killed, hung, restarted, replaced by another version."""

import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import overlay
from overlay.lab import netns
from overlay.lab.chaos.cast import SUBJECT
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Plant, Planted
from overlay.lab.chaos.peers import expected, subnet_of
from overlay.lab.chaos.picture import DEVICE
from overlay.lab.chaos.stage import Stage

GROUP: Final = "agent"
CROWD: Final = 1000  # peers
_FEW: Final = 60
_HUNG_S: Final = 3.0
_NEW_VERSION: Final = "999.0.0"
_LATEST_KILL_S: Final = 0.3  # after the first lease is written
_STALE: Final = "stale routes, neighbors and FDB entries stay"


def faults() -> list[Fault]:
    """Return the faults of an agent; forwarding goes on through all of them."""
    return [
        Fault(
            "kill -9 while leases change, others meanwhile",
            GROUP,
            _killed(_FEW),
            _STALE,
            rounds=5,
            since=FROM_RETURN,
            is_lossless=True,
        ),
        Fault(
            "kill -9 while it programs 1,000 peers",
            GROUP,
            _killed(CROWD),
            "right after 1.06 s, 0 lost (nothing changed)",
            rounds=3,
            since=FROM_RETURN,
            is_lossless=True,
        ),
        Fault(
            "restart with 1,000 peers, 30 changed meanwhile",
            GROUP,
            _restarted,
            "right after 1.06 s, 0 lost (nothing changed)",
            rounds=3,
            since=FROM_RETURN,
            is_lossless=True,
        ),
        Fault(
            "hung for 3 s (SIGSTOP), leases change",
            GROUP,
            _hung,
            since=FROM_RETURN,
            is_lossless=True,
        ),
        Fault(
            "entries gone already when their lease goes",
            GROUP,
            _gone_already,
            "its event loop stands still for 155 s",
            since=FROM_RETURN,
            is_lossless=True,
        ),
        Fault(
            "upgrade to another version",
            GROUP,
            _upgraded,
            rounds=3,
            since=FROM_RETURN,
            is_lossless=True,
        ),
        Fault(
            "flags that do not concern the wire",
            GROUP,
            _flags_changed,
            rounds=3,
            since=FROM_RETURN,
            is_lossless=True,
        ),
    ]


def with_peers(stage: Stage, count: int) -> dict[str, bytes]:
    """Write leases of nodes that do not exist, wait until the subject has them, return them."""
    made = stage.fakes(stage.free_keys(count))
    stage.put(made)
    leases = stage.leases()
    stage.await_that(lambda: stage.is_in_step([SUBJECT], leases), f"{count} peers are programmed")
    return made


def change(stage: Stage, made: Mapping[str, bytes], each: int = 10) -> dict[str, bytes]:
    """Of the fake leases delete some, give some another MAC and add some; return all made."""
    keys = list(made)
    gone, moved = keys[:each], keys[each : 2 * each]
    stage.delete(gone)
    changed = stage.moved({key: made[key] for key in moved})
    new = stage.fakes(stage.free_keys(2 * each)[each:])
    stage.put(changed | new)
    return {key: value for key, value in made.items() if key not in gone} | changed | new


def _killed(count: int) -> Plant:
    def plant(stage: Stage) -> Planted:
        made = stage.fakes(stage.free_keys(count))
        killer = threading.Timer(
            stage.random.uniform(0, _LATEST_KILL_S), lambda: stage.kill(SUBJECT)
        )
        killer.start()
        stage.put(made)
        killer.join()
        made = change(stage, made)
        return _started(stage, made)

    return plant


def _restarted(stage: Stage) -> Planted:
    made = with_peers(stage, CROWD)
    stage.terminate(SUBJECT)
    made = change(stage, made)
    return _started(stage, made)


def _started(stage: Stage, made: Mapping[str, bytes]) -> Planted:
    leases = stage.leases()
    at = stage.start(SUBJECT)
    return Planted(
        right=lambda: stage.is_in_step([SUBJECT], leases) and stage.is_ready(SUBJECT),
        at=at,
        undo=lambda: stage.delete(list(made)),
        note=lambda: f"{stage.cpu_s(SUBJECT):.2f} s of CPU",
    )


def _hung(stage: Stage) -> Planted:
    made = with_peers(stage, _FEW)
    stage.signal(SUBJECT, signal.SIGSTOP)
    try:
        made = change(stage, made)
        leases = stage.leases()
        time.sleep(_HUNG_S)
    finally:
        at = time.monotonic()
        stage.signal(SUBJECT, signal.SIGCONT)
    return Planted(
        right=lambda: stage.is_in_step([SUBJECT], leases),
        at=at,
        undo=lambda: stage.delete(list(made)),
    )


def _gone_already(stage: Stage) -> Planted:
    made = with_peers(stage, _FEW)
    (key, value), *others = made.items()
    entries = expected({key: value}, "")
    ((gateway, mac),) = entries.neighbors
    stage.signal(SUBJECT, signal.SIGSTOP)
    try:
        netns.ip_batch(
            stage.namespace(SUBJECT),
            [f"route del {subnet_of(key)}", f"neigh del {gateway} dev {DEVICE}"],
        )
        stage.run(SUBJECT, "bridge", "fdb", "del", mac, "dev", DEVICE)
        stage.delete([key])
        made = change(stage, dict(others))  # what comes behind it must not wait
        leases = stage.leases()
    finally:
        at = time.monotonic()
        stage.signal(SUBJECT, signal.SIGCONT)
    return Planted(
        right=lambda: stage.is_in_step([SUBJECT], leases),
        at=at,
        undo=lambda: stage.delete(list(made)),
    )


def _upgraded(stage: Stage) -> Planted:
    copy = _other_version(stage.lab.dir.path / "upgrade")
    stage.terminate(SUBJECT)
    at = stage.start(SUBJECT, environment={"PYTHONPATH": str(copy)})
    key = stage.subnet_key(SUBJECT)

    def right() -> bool:
        facts = json.loads(stage.leases()[key])["Overlay"]
        return facts["Version"] == _NEW_VERSION and stage.is_ready(SUBJECT)

    return Planted(right, at, undo=lambda: stage.restart(SUBJECT))


def _other_version(place: Path) -> Path:
    """Return a directory with a copy of the package that calls itself another version."""
    if not place.exists():
        source = Path(overlay.__file__).parent
        ignore = shutil.ignore_patterns("__pycache__", "lab")
        shutil.copytree(source, place / source.name, ignore=ignore)
        init = place / source.name / "__init__.py"
        version = f'__version__ = "{_NEW_VERSION}"'
        text = re.sub(r"(?m)^__version__ = .*$", version, init.read_text())
        init.write_text(text)
    return place


def _flags_changed(stage: Stage) -> Planted:
    stage.terminate(SUBJECT)
    at = stage.start(SUBJECT, "--log-level=debug", "--subnet-lease-renew-margin=30m")
    return Planted(lambda: stage.is_ready(SUBJECT), at, undo=lambda: stage.restart(SUBJECT))
