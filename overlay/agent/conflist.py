"""The network configuration that tells the runtime of us: written once pods can be attached.

A kubelet calls its node ready as soon as there is a configuration, and gives
it pods. So it is written when a lease is held and the kernel is in step, and
not before; an agent that waits leaves one of an earlier start where it is, for
the plugin answers by itself that the runtime should ask again. Whoever deletes
or changes it finds it back after the next audit. `overlayctl node reset`
removes it.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from overlay.agent.files import write_file
from overlay.agent.status import Bell, Snapshot, Status
from overlay.model.conflist import KUBERNETES, chained_plugins, conflist, file_name

log = logging.getLogger(__name__)

_USUAL_SOCKET: Final = Path("/run/overlay/cni.sock")
_LOOK_S: Final = 1.0  # until it is ready; nothing waits for this thread
_SUFFIXES: Final = (".conf", ".conflist", ".json")  # as runtimes take them, in libcni's ConfFiles


@dataclass(frozen=True, slots=True)
class CniFlags:
    """Where the runtime looks: ``conf_dir`` for configurations (None: we write none)."""

    conf_dir: Path | None = None
    bin_dir: Path = Path("/opt/cni/bin")


class ConfigFile:
    """The file, kept as it should be. One thread uses it."""

    def __init__(self, flags: CniFlags, socket: Path, audit_interval_s: float) -> None:
        self._flags = flags
        self._socket = "" if socket == _USUAL_SOCKET else str(socket)
        self._audit_interval_s = audit_interval_s
        self._trouble = ""

    def run(self, status: Status, stop: Bell) -> None:
        """Write it once the agent is ready, and again after each audit, until ``stop``."""
        if self._flags.conf_dir is None:
            return
        while not stop.is_set() and not status.wait_for(_is_ready, _LOOK_S).is_ready:
            continue
        while not stop.is_set():
            self._try(self._flags.conf_dir)
            stop.wait(self._audit_interval_s)

    def _try(self, folder: Path) -> None:
        try:
            trouble = self.keep(folder)
        except OSError as exc:
            trouble = f"--cni-conf-dir {folder}: {exc.strerror or exc}; no pod is attached by us"
        if trouble and trouble != self._trouble:
            log.warning("%s", trouble)
        self._trouble = trouble

    def keep(self, folder: Path) -> str:
        """Make the file what it should be; return what is in its way, or nothing.

        Whole or not at all; repeating it is safe. Raises OSError.
        """
        target = folder / file_name(KUBERNETES)
        absent = [p for p in chained_plugins(KUBERNETES) if not self._is_there(p)]
        text = json.dumps(conflist(KUBERNETES, self._socket, absent), indent=2) + "\n"
        if not _says(target, text):
            write_file(target, text)
            target.chmod(0o644)  # it holds no secret, and others of the host read it
            log.info("%s: the runtime attaches pods by us%s", target, _without(absent))
        ahead = sorted(
            path.name
            for path in folder.iterdir()
            if path.suffix in _SUFFIXES and not path.name.startswith(".")
        )
        if ahead and ahead[0] != target.name:
            return f"{folder / ahead[0]} sorts before {target.name}: runtimes attach pods by it"
        return ""

    def _is_there(self, plugin: str) -> bool:
        return os.access(self._flags.bin_dir / plugin, os.X_OK)


def _is_ready(snapshot: Snapshot) -> bool:
    return snapshot.is_ready


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8", errors="replace") == text
    except OSError:
        return False


def _without(absent: list[str]) -> str:
    if not absent:
        return ""
    return f", without {', '.join(absent)} (host ports), which this host has not got"
