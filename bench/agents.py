"""Agents under measurement: started with flannel's flags, looked at from outside."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.bed import DEVICE, Bed, Node
from bench.options import AgentCommand
from bench.peers import PREFIX
from bench.usage import Usage, usage
from overlay.lab import netns

_END_S: Final = 10.0
_TAIL: Final = 600  # characters


class Running:
    """An agent's process and all that it starts: a session of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, started_at: float) -> None:
        self._process = process
        self._log = log
        self.started_at = started_at  # time.perf_counter, just before it was executed

    @property
    def is_alive(self) -> bool:
        """Return whether it has not ended."""
        return self._process.poll() is None

    @property
    def usage(self) -> Usage:
        """Return what it has used so far."""
        return usage(self._process.pid)

    @property
    def log_tail(self) -> str:
        """Return the end of what it said."""
        return self._log.read_text(errors="replace")[-_TAIL:]

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, by force where it does not end by itself; repeating it is safe."""
        for number in (how, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
                return


def flags(agent: AgentCommand, node: Node, endpoint: str) -> list[str]:
    """Return an agent's command line: flags that flannel has too, and for ours a place of its own.

    One dash, for flannel's way of reading flags takes both and ours too.
    """
    common = [
        f"-etcd-endpoints={endpoint}",
        f"-etcd-prefix={PREFIX}",
        f"-iface={DEVICE}",
        f"-public-ip={node.address}",
        f"-subnet-file={node.place / 'subnet.env'}",
    ]
    own = [
        f"--node-name={node.namespace}",
        f"--state-dir={node.place / 'state'}",
        "--log-level=warning",
    ]
    return [*agent.words, *common, *(own if agent.is_ours else ())]


@contextlib.contextmanager
def running(
    agent: AgentCommand, bed: Bed, node: Node, *, away: bool = False, endpoint: str | None = None
) -> Iterator[Running]:
    """Start an agent in a node, for the bed's etcd or an ``endpoint``; it ends with the block."""
    command = flags(agent, node, endpoint or bed.endpoint(away=away))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OVERLAYD_")}
    # flannel asks for it, and another agent may be a script that finds its own files by it.
    environment["NODE_NAME"] = node.namespace
    log = node.place / "agent.log"

    def start() -> tuple[float, "subprocess.Popen[bytes]"]:
        with log.open("ab") as output:
            started_at = time.perf_counter()
            return started_at, subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    started_at, process = netns.inside(node.namespace, start)
    agent_running = Running(process, log, started_at)
    try:
        yield agent_running
    finally:
        agent_running.end()
