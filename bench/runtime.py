"""A runtime under measurement: ``runtime.c`` executes a plugin, and tells when each call was."""

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bench import agents
from bench.chains import Chain
from bench.series import Series, series
from overlay.model.errors import OverlayError

_SOURCE: Final = Path(__file__).with_name("runtime.c")
_ARGUMENTS: Final = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod"


class PluginError(OverlayError):
    """A plugin refused what it was asked: the text is its own."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Seconds of each call, of all together, and of processor time for one."""

    each_s: tuple[float, ...]
    wall_s: float
    cpu_s: float

    @property
    def series(self) -> Series:
        """Return the seconds of each call."""
        return series(self.each_s)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the calls of several runs as if they were one."""
        each = tuple(each for part in parts for each in part.each_s)
        used = sum(part.cpu_s * len(part.each_s) for part in parts)
        return cls(each, sum(part.wall_s for part in parts), used / len(each))


def build(place: Path) -> Path:
    """Return the program that executes plugins, built in the directory ``place``."""
    program = place / "runtime"
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, _SOURCE], check=True)
    return program


class Runtime:
    """Attaches and detaches pods by one chain, in the thread's namespace.

    ``program`` is what ``build`` returned, and ``pods`` the paths of
    namespaces; the processor time of ``agent``, if any, counts too.
    """

    def __init__(
        self, program: Path, chain: Chain, pods: Sequence[Path], agent: agents.Running | None
    ) -> None:
        self._program = program
        self._chain = chain
        self._pods = tuple(map(str, pods))
        self._agent = agent
        self._config = program.with_name("config.json")

    def in_turns(self, rounds: int, workers: int) -> dict[str, Calls]:
        """Return ``rounds`` ADDs and as many DELs, ``workers`` at a time, each pod by itself.

        The agent's processor time is split in halves: they run side by side.
        """
        return self._run(workers, rounds, ("ADD", "DEL"))

    def all_at_once(self, workers: int) -> dict[str, Calls]:
        """Attach every pod, ``workers`` at a time, and then detach them all."""
        count = len(self._pods)
        return {
            command: self._run(workers, count, (command,))[command] for command in ("ADD", "DEL")
        }

    def _run(self, workers: int, rounds: int, commands: Sequence[str]) -> dict[str, Calls]:
        """Return the calls of each command. Raises PluginError."""
        self._config.write_bytes(self._chain.config)
        environment = {
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": _ARGUMENTS,
            "CNI_PATH": self._chain.path,
            "PATH": os.environ["PATH"],
        }
        given = (str(workers), str(rounds), ",".join(commands), str(self._config), *self._pods)
        before_s = self._agent_cpu_s()
        done = subprocess.run(
            [str(self._program), *given, "--", *self._chain.words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PluginError(f"{self._chain.name}: {done.stderr}")
        agent_s = (self._agent_cpu_s() - before_s) / len(commands)
        lines = [line.split() for line in done.stdout.splitlines()]
        return {
            command: _calls((line for line in lines if line[0] == command), agent_s)
            for command in commands
        }

    def _agent_cpu_s(self) -> float:
        return self._agent.usage.cpu_s if self._agent is not None else 0.0


def _calls(lines: Iterable[Sequence[str]], agent_s: float) -> Calls:
    """Return what the lines ``COMMAND BEGIN_NS END_NS CPU_US`` of one command say."""
    begins, ends, used = zip(*(map(int, line[1:]) for line in lines), strict=True)
    each_s = tuple((end - begin) / 1e9 for begin, end in zip(begins, ends, strict=True))
    return Calls(each_s, (max(ends) - min(begins)) / 1e9, (sum(used) / 1e6 + agent_s) / len(used))
