"""What a fault of a table is: how it is planted, who is asked, what must be said."""

from dataclasses import dataclass
from typing import Final

SUBJECT: Final = "n1"
PARTNER: Final = "n2"
SUBNETS: Final = "/coreos.com/network/subnets"  # of leases in etcd
# `overlayctl doctor` with where this lab's files are; braces as below.
DOCTOR: Final = "doctor --root {root} --state-dir {state}"
EVENTS: Final = "events"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the node ``n1``.

    ``plant`` and ``undo`` are commands as somebody would run them ``where`` it
    happens, or of ``scene``: ``etcd put KEY VALUE``, ``etcd del KEY...``, ``etcd
    end KEY`` (its lease runs out), ``etcd compact|stop|start`` and ``agent
    freeze|thaw``. ``before`` is done first, while the agent runs, and waited
    for: ``learned`` is part of the event of it. ``asked`` are
    words for ``overlayctl`` on the node, and ``expected`` is part of a line of
    its answer. Names in braces are filled in by ``scene.names``. The agent would
    put most of it right within milliseconds: where ``is_agent_away``, it is
    killed before and started again afterwards, and ``undo`` is only what it
    leaves alone. A fault that ``heals`` leaves nothing to be named but the event
    of it, which stays.
    """

    name: str
    plant: tuple[str, ...]
    expected: str
    asked: str = DOCTOR
    undo: tuple[str, ...] = ()
    where: str = SUBJECT
    is_agent_away: bool = True
    before: tuple[str, ...] = ()
    learned: str = ""
    heals: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a fault: the line that names it, and what it says to do."""

    fault: Fault
    line: str
    remedy: str
    problem: str = ""  # why the row does not count

    @property
    def is_named(self) -> bool:
        """Return whether the fault was named, and no longer was when it was undone."""
        return not self.problem
