"""What to send next to learn how a flow behaves: a search without any I/O.

A generator of attempts that is told each one's verdict; who sends, and how
time passes, is the caller's business.
"""

import enum
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeAlias

from overlay.lab.matrix import Outcome

SMALLEST: Final = 96  # bytes of the IP packet; every link carries that
LARGEST: Final = 65535  # what an IP length field holds
_RETRIES: Final = 2  # for a size that should pass: a busy machine may lose one


class Verdict(enum.Enum):
    """How one attempt ended."""

    ANSWERED = "answered"
    TOO_BIG = "too big"
    REFUSED = "refused"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Send one packet of ``size`` bytes and wait ``patience_s`` for the verdict."""

    size: int
    patience_s: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """How the flow behaves; ``largest`` is the largest packet, in bytes, that passed."""

    outcome: Outcome
    largest: int | None = None


Search: TypeAlias = Generator[Attempt, Verdict, Measurement]


def measure(likely: int | None, attempts: int, patience_s: float = 1.0) -> Search:
    """Find out whether a small packet is answered, then the largest one that is.

    ``likely`` and one byte more are tried first, so that a path as expected
    takes three packets. Only when ``attempts`` small packets are met with
    silence is the flow called lost.
    """
    for _ in range(attempts):
        verdict = yield Attempt(SMALLEST, patience_s)
        if verdict is Verdict.ANSWERED:
            break
        if verdict is not Verdict.LOST:
            return Measurement(Outcome.REFUSED)
    else:
        return Measurement(Outcome.LOST)

    passed, failed = SMALLEST, LARGEST + 1
    if likely is not None:
        if (yield from _passes(likely, _RETRIES, patience_s)):
            passed = likely
        else:
            failed = likely
        if passed == likely:
            if not (yield from _passes(likely + 1, 1, patience_s / 2)):
                return Measurement(Outcome.ANSWERED, likely)
            passed = likely + 1
    while failed - passed > 1:
        middle = (passed + failed) // 2
        if (yield from _passes(middle, 1, patience_s / 2)):
            passed = middle
        else:
            failed = middle
    return Measurement(Outcome.ANSWERED, passed)


def _passes(size: int, tries: int, patience_s: float) -> Generator[Attempt, Verdict, bool]:
    for _ in range(tries):
        verdict = yield Attempt(size, patience_s)
        if verdict is not Verdict.LOST:
            return verdict is Verdict.ANSWERED
    return False
