"""What the command line asks of a bench."""

import enum
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")


class Effort(enum.Enum):
    """How long a bench may take: ``QUICK`` seconds, ``FULL`` as long as 20,000 peers need."""

    QUICK = "quick"
    NORMAL = "normal"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """How an agent is started; flannel's flags are appended to ``words``.

    ``is_ours`` lets it have flags that flannel lacks, and its own CNI plugin.
    """

    name: str
    words: tuple[str, ...]
    is_ours: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the agent that a command line starts. Raises ValueError for an empty one.

        >>> AgentCommand.parse("/opt/flanneld -ip-masq").name
        'flanneld'
        """
        words = tuple(shlex.split(text))
        if not words:
            msg = "an empty command"
            raise ValueError(msg)
        return cls(Path(words[0]).name, words)

    @classmethod
    def ours(cls) -> Self:
        """Return the ``overlayd`` that is installed beside the running interpreter."""
        return cls("overlayd", (str(Path(sys.executable).parent / "overlayd"),), is_ours=True)


def distinct(agents: Sequence[AgentCommand]) -> tuple[AgentCommand, ...]:
    """Return the agents with names of their own: a second ``flanneld`` is ``flanneld-2``."""
    found: dict[str, AgentCommand] = {}
    for agent in agents:
        free = (f"{agent.name}-{number}" for number in itertools.count(2))
        name = agent.name if agent.name not in found else next(n for n in free if n not in found)
        found[name] = replace(agent, name=name)
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Options:
    """The agents to measure, ours first, and how much work each bench does."""

    effort: Effort = Effort.NORMAL
    agents: tuple[AgentCommand, ...] = ()
    idle_s: float | None = None
    are_leases_own: bool = False

    def pick(self, quick: T, normal: T, full: T) -> T:
        """Return the value for the effort."""
        return {Effort.QUICK: quick, Effort.NORMAL: normal, Effort.FULL: full}[self.effort]
