"""The call ``events`` of the node's socket: what was noted, or what is noted next."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from overlay.agent.events import Events
from overlay.model.errors import UsageError, shown
from overlay.model.event import Filter

LONGEST_WAIT_S: Final = 10.0  # a client that went away is noticed as late


def event_calls(events: Events) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    """Return the call by its name.

    Its arguments, all optional: ``after`` (a number), ``since`` (a time as
    events have it), ``kinds`` (kinds and groups) and ``wait_s``, the seconds
    to wait where there is nothing yet. Raises UsageError for others.
    """

    def read(given: Mapping[str, Any]) -> dict[str, Any]:
        wanted = Filter(
            after=_checked(given, "after", int, 0),
            since=_checked(given, "since", str, ""),
            kinds=frozenset(filter(_is_text, _checked(given, "kinds", list, []))),
        )
        wait_s = float(_checked(given, "wait_s", (int, float), 0.0))
        found, last = events.read(wanted, min(max(wait_s, 0.0), LONGEST_WAIT_S))
        return {"events": [event.to_json() for event in found], "last": last}

    return {"events": read}


def _checked(given: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = given.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"events: {name} {shown(value)} is of the wrong type")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)
