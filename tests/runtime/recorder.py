"""What a runtime asked the plugin: a recorder in front of it, on one machine."""

import time
from typing import Final

from tests.runtime.machine import BIN_DIR, DEADLINE_S, Machine

# One line a call. Appended in one write, so that calls side by side stay apart.
_SCRIPT: Final = """#!/bin/sh
{environment}
echo "$CNI_COMMAND $CNI_CONTAINERID ${{CNI_NETNS:--}} $CNI_IFNAME" >>"{calls}"
exec "{plugin}"
"""
_STEP_S: Final = 0.0005  # an ADD takes a few milliseconds


class Recorder:
    """Stands in the place of the machine's plugin, which it executes."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._calls = machine.place / "calls"
        self._calls.touch()

    def install(self, timeout_ms: int = 0) -> None:
        """Stand before the plugin that was installed last; with ``timeout_ms`` hurry it."""
        plugin = self._machine.plugins / "overlay"
        behind = plugin.with_name("overlay.recorded")
        if not plugin.read_bytes().startswith(b"#!/bin/sh"):
            plugin.rename(behind)
        hurry = f"export OVERLAY_CNI_TIMEOUT_MS={timeout_ms}" if timeout_ms else ""
        plugin.write_text(
            _SCRIPT.format(environment=hurry, calls=self._calls, plugin=f"{BIN_DIR}/{behind.name}")
        )
        plugin.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """Return command, container, namespace (``-`` for none) and interface of every call."""
        return [line.split() for line in self._calls.read_text().splitlines()]

    def count(self, command: str) -> int:
        """Return how many calls of one command there were."""
        return sum(call[0] == command for call in self.calls())

    def wait_for(self, command: str, count: int) -> None:
        """Return as soon as there were ``count`` calls. Raises AssertionError."""
        deadline = time.monotonic() + DEADLINE_S
        while self.count(command) < count:
            assert time.monotonic() < deadline, f"no {command} number {count}: {self.calls()}"
            time.sleep(_STEP_S)
