"""What a check is, and what it can say."""

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from overlay.cli.doctor.facts import Facts


class Severity(enum.StrEnum):
    """How bad a finding is: traffic breaks (``error``), or may break (``warning``)."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that hurts: why, with the value seen, and a command that mends it."""

    severity: Severity
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Fine:
    """Nothing to mend; ``seen`` is what was looked at."""

    seen: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The check could not be made, and why."""

    reason: str


Verdict: TypeAlias = Finding | Fine | Unknown


class Scope(enum.StrEnum):
    """Whom a check asks: this host alone, the store, or the peers."""

    HOST = "host"
    STORE = "store"
    PEERS = "peers"


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``run`` changes nothing and may be repeated.

    It yields any number of verdicts; an OverlayError out of it means that it
    cannot tell, and why.
    """

    name: str
    looks_at: str
    run: Callable[[Facts], Iterable[Verdict]]
    scope: Scope = Scope.HOST


def error(reason: str, remedy: str) -> Finding:
    """Return a finding that breaks traffic."""
    return Finding(Severity.ERROR, reason, remedy)


def warning(reason: str, remedy: str) -> Finding:
    """Return a finding that may break traffic."""
    return Finding(Severity.WARNING, reason, remedy)


MOST_NAMED: Final = 5


def named(items: Iterable[object]) -> str:
    """Return the first few of ``items`` with commas between them, and how many more there are.

    >>> named(range(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    texts = [str(item) for item in items]
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more
