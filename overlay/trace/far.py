"""What a node tells another of its half of a way: words of fixed lists, and sizes.

A step becomes place, name, state, MTU and reason, and no text: rules, names of
pods, paths and interfaces stay here (docs/decisions/0008). The asker makes the
text of what it knows itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any, Final, get_args

from overlay.model.errors import OverlayError
from overlay.policy.verdict import Packet
from overlay.trace.explain import leg_steps
from overlay.trace.facts import FarHalf, Observed
from overlay.trace.reasons import WORDS, Reason
from overlay.trace.steps import State, Step, broken, up_to_the_break

_PLACES: Final = frozenset({"pod", "node", "underlay", "outside"})
_MOST: Final = 64  # steps of one direction; a whole way has some twenty
_STATES: Final = get_args(State)
# By the step's name: what passing it means there.
_PASSED: Final[Mapping[str, str]] = {
    "interface": "is up",
    "route": "leads towards {destination}",
    "neighbor": "is known",
    "fdb": "leads to the node of {destination}",
    "tunnel": "the VXLAN device is up",
    "outside": "encapsulated",
    "mtu": "full packets fit",
    "nat": "{source} stays as it is",
    "bridge": "both are on one link",
    "policy": "let through",
    "source check": "let through",
    "tunnel policy": "let through",
    "underlay policy": "let through",
    "forwarding": "is on",
    "delivery": "{destination} is there",
    "arrival": "it comes in",
    "sending": "it is sent",
}
_DOUBT: Final = "the host has rules that may also decide"


class FarAnswerError(OverlayError):
    """What another node told cannot be read; the text says of what it is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who was asked, and for which packet: ``explain SRC DST`` and its ``flags`` say it there."""

    node: str
    packet: Packet
    flags: str = ""

    def steps(self, document: Any) -> FarHalf:
        """Return what ``document`` tells as steps. Raises FarAnswerError."""
        if not isinstance(document, dict):
            raise FarAnswerError(f"{self.node} told something that is no answer")
        there, back = document.get("there"), document.get("back")
        packet = self.packet
        return FarHalf(
            tuple(self._spelled(there, str(packet.source), str(packet.destination))),
            tuple(self._spelled(back, str(packet.destination), str(packet.source))),
        )

    def _spelled(self, told: Any, source: str, destination: str) -> Iterator[Step]:
        if not isinstance(told, list) or len(told) > _MOST:
            raise FarAnswerError(f"{self.node} told of no way, or of an endless one")
        known = {"node": self.node, "source": source, "destination": destination}
        for item in told:
            place, name, state, mtu, word = self._read(item)
            where = f"{self.node} {place}"
            if state == "broken":
                fault = WORDS[_reason(word)].format_map(known)
                asked = f"{self.packet.source} {self.packet.destination}{self.flags}"
                mend = f"ssh {quote(self.node)} overlayctl explain {asked}"
                yield broken(where, name, "says its agent", fault, mend, _reason(word))
            elif state == "note":
                yield Step(where, name, _DOUBT, "note")
            else:
                yield Step(where, name, _PASSED[name].format_map(known), mtu=mtu)

    def _read(self, item: Any) -> tuple[str, str, State, int | None, str]:
        keys = ("place", "step", "state", "mtu", "reason")
        values: tuple[Any, ...] = ()
        if isinstance(item, dict):
            values = tuple(item.get(key) for key in keys)
        if len(values) == len(keys):
            place, name, state, mtu, word = values
            is_known = place in _PLACES and isinstance(name, str) and name in _PASSED
            is_size = mtu is None or (type(mtu) is int and 0 < mtu < 1 << 20)
            if is_known and is_size and state in _STATES:
                return place, name, state, mtu, str(word)
        raise FarAnswerError(f"{self.node} told a step that is none; do both have one version?")


def told(observed: Observed) -> dict[str, Any]:
    """Return what the asker is told, as ``Asked.steps`` takes it.

    Each direction up to its own break. What is assumed here is the asker's to know.
    """
    source, destination = observed.source, observed.destination
    there: Iterable[Step] = leg_steps(observed, observed.forward, source, destination)
    if not observed.has_table:
        there = (broken("node", "policy", "", "", "", Reason.TABLE_GONE),)
    back: Iterable[Step] = ()
    if observed.back is not None:
        back = leg_steps(observed, observed.back, destination, source)
    return {"there": _bare(there), "back": _bare(back)}


def _bare(steps: Iterable[Step]) -> list[dict[str, Any]]:
    return [
        {
            "place": step.place,
            "step": step.name,
            "state": step.state,
            "mtu": step.mtu,
            "reason": step.reason.value,
        }
        for step in up_to_the_break(steps).steps
        if step.state != "assumed" and step.place in _PLACES and step.name in _PASSED
    ]


def _reason(word: str) -> Reason:
    try:
        return Reason(word)
    except ValueError:  # of a newer version
        return Reason.UNSAID
