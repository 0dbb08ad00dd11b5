"""What becomes of the subject's state files before it starts again. Rows of the group ``agent``."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from overlay.lab.chaos.agent import GROUP, change, with_peers
from overlay.lab.chaos.cast import SUBJECT
from overlay.lab.chaos.fault import FROM_RETURN, Fault, Plant, Planted
from overlay.lab.chaos.picture import ip_show
from overlay.lab.chaos.stage import Stage
from overlay.lab.errors import LabError

_FEW: Final = 30

Spoil = Callable[[bytes], bytes]


def faults() -> list[Fault]:
    """Return the faults of state files; its pod keeps its address through all of them."""
    kinds: dict[str, Spoil] = {
        "state files cut off": lambda data: data[: len(data) // 2],
        "state files emptied": lambda _: b"",
        "state files of an older version": _older,
        "state files of a newer version": _newer,
    }
    return [
        Fault(f"{name}, restarted", GROUP, _spoiled(spoil), since=FROM_RETURN, is_lossless=True)
        for name, spoil in kinds.items()
    ]


def _older(data: bytes) -> bytes:
    """Return a document as it was written before formats had numbers; other text as it is."""
    return _with(data, lambda document: {k: v for k, v in document.items() if k != "format"})


def _newer(data: bytes) -> bytes:
    return _with(data, lambda document: {**document, "format": 99, "unheard_of": [{}]})


def _with(data: bytes, turn: Callable[[Mapping[str, object]], object]) -> bytes:
    try:
        document = json.loads(data)
    except ValueError:
        return data
    return json.dumps(turn(document)).encode() if isinstance(document, dict) else data


def _spoiled(spoil: Spoil) -> Plant:
    def plant(stage: Stage) -> Planted:
        made = with_peers(stage, _FEW)
        stage.terminate(SUBJECT)
        made = change(stage, made)
        leases, addresses = stage.leases(), _pod_routes(stage)
        before = {path: path.read_bytes() for path in _files(stage)}
        if not any(path.parent.name == "attachments" for path in before):
            msg = f"{SUBJECT} has no record of its pod"
            raise LabError(msg)
        for path, data in before.items():
            path.write_bytes(spoil(data))
        at = stage.start(SUBJECT)

        def right() -> bool:
            # Ready first: by then the subnet file is whole, by which the suite knows its lease.
            is_in_step = stage.is_ready(SUBJECT) and stage.is_in_step([SUBJECT], leases)
            return is_in_step and _pod_routes(stage) == addresses

        def undo() -> None:
            stage.delete(list(made))
            stage.terminate(SUBJECT)
            for path, data in before.items():
                path.write_bytes(data)
            stage.restart(SUBJECT)

        return Planted(right, at, undo, note=f"{len(before)} files")

    return plant


def _files(stage: Stage) -> list[Path]:
    place = stage.lab.dir.node(SUBJECT)
    kept = [
        *place.glob("*.json*"),
        *place.glob("attachments/*"),
        stage.lab.dir.subnet_file(SUBJECT),
    ]
    return [path for path in kept if path.is_file()]


def _pod_routes(stage: Stage) -> str:
    return ip_show(stage.namespace(SUBJECT), ["route show table all proto 80"])
