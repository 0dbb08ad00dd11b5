"""A way as steps, and how steps read: one line each, the first that breaks marked."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from overlay.trace.reasons import Reason

State: TypeAlias = Literal["ok", "assumed", "note", "broken"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``mtu`` is the largest packet that passes here, in bytes, where that is known.

    ``fault`` says what breaks, ``mend`` is the command that would mend it;
    both are empty unless ``state`` is ``broken``. ``reason`` is the fault in a
    word that other nodes may be told.
    """

    place: str  # pod, node NAME, underlay, ...
    name: str  # interface, route, neighbor, ...
    text: str
    state: State = "ok"
    mtu: int | None = None
    fault: str = ""
    mend: str = ""
    reason: Reason = Reason.UNSAID

    def to_json(self) -> dict[str, Any]:
        """Return the step as a document."""
        return {
            "place": self.place,
            "step": self.name,
            "state": self.state,
            "text": self.text,
            "mtu": self.mtu,
            "fault": self.fault or None,
            "mend": self.mend or None,
        }

    def __str__(self) -> str:
        mark = {"ok": "", "assumed": "assumed: ", "note": "note: ", "broken": "BREAKS "}[self.state]
        mtu = f" [mtu {self.mtu}]" if self.mtu else ""
        line = f"{mark}{self.place} {self.name}: {self.text}{mtu}"
        return f"{line}; {self.fault}; mend: {self.mend}" if self.state == "broken" else line


@dataclass(frozen=True, slots=True)
class Way:
    """An answer: every step up to the first that breaks."""

    steps: tuple[Step, ...]

    @property
    def broken(self) -> Step | None:
        """Return the step that breaks, None when all pass."""
        return next((step for step in self.steps if step.state == "broken"), None)

    @property
    def mtu(self) -> int | None:
        """Return the largest packet that passes every step, in bytes."""
        return min((s.mtu for s in self.steps if s.mtu and s.state != "note"), default=None)

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))


def up_to_the_break(steps: Iterable[Step]) -> Way:
    """Return the way made of ``steps``; what lies behind the first break is left out."""
    found: list[Step] = []
    for step in steps:
        found.append(step)
        if step.state == "broken":
            break
    return Way(tuple(found))


def broken(
    place: str, name: str, text: str, fault: str, mend: str, reason: Reason = Reason.UNSAID
) -> Step:
    """Return a step that breaks."""
    return Step(place, name, text, "broken", fault=fault, mend=mend, reason=reason)
