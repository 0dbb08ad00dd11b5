"""What clients of a lease store did, as lines of a file that survive ``kill -9``.

An operation is two lines: its beginning, written before the call, and its end,
written after it. One without an end may have been done, or be done later.
Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from overlay.model.subnet import Subnet, parse_subnet_key

Kind: TypeAlias = Literal["acquire", "renew", "release", "view"]
# "ok"; "lost": the store says that the lease is not what its holder saw;
# "refused": nothing was to be had; "unknown": whether it was done is not known.
Outcome: TypeAlias = Literal["ok", "lost", "refused", "unknown"]
NEVER: Final = math.inf


@dataclass(frozen=True, slots=True)
class Holding:
    """One lease in a view: whose it is, and when its key was created."""

    subnet: Subnet
    client: str
    create_revision: int = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a client.

    ``number`` tells operations apart; a client has one at a time. ``subnet``
    is what was acquired, renewed or released. ``basis`` is the number of the
    operation whose lease a renewal or release was given. ``revision`` is the
    one that the store wrote, where it said so.
    """

    number: int
    client: str
    kind: Kind
    began_s: float
    ended_s: float = NEVER
    outcome: Outcome = "unknown"
    subnet: Subnet | None = None
    basis: int | None = None
    ttl_s: float = NEVER
    revision: int = 0
    holdings: tuple[Holding, ...] = ()

    def __str__(self) -> str:
        end = "never ended" if self.ended_s == NEVER else f"to {self.ended_s:.3f}"
        where = f" {self.subnet}" if self.subnet is not None else ""
        basis = f" of #{self.basis}" if self.basis is not None else ""
        seen = ", ".join(f"{h.subnet}: {h.client}" for h in self.holdings)
        return (
            f"#{self.number} {self.client} {self.kind}{where}{basis}{f' [{seen}]' if seen else ''}"
            f" -> {self.outcome} (from {self.began_s:.3f} {end})"
        )


def begin_line(operation: Operation) -> str:
    """Return the line to write before the call."""
    return json.dumps(
        {
            "begin": operation.number,
            "client": operation.client,
            "kind": operation.kind,
            "at": operation.began_s,
            "subnet": operation.subnet.key if operation.subnet is not None else None,
            "basis": operation.basis,
            "ttl": operation.ttl_s if operation.ttl_s != NEVER else None,
        }
    )


def end_line(operation: Operation) -> str:
    """Return the line to write after the call."""
    return json.dumps(
        {
            "end": operation.number,
            "at": operation.ended_s,
            "outcome": operation.outcome,
            "subnet": operation.subnet.key if operation.subnet is not None else None,
            "revision": operation.revision,
            "holdings": [[h.subnet.key, h.client, h.create_revision] for h in operation.holdings],
        }
    )


def read_history(paths: Iterable[Path]) -> list[Operation]:
    """Return the operations in all files by the time they began.

    A last line that was cut off is left out: its operation did not end.
    """
    found: dict[int, Operation] = {}
    for path in paths:
        for document in _documents(path):
            if "begin" in document:
                found[document["begin"]] = Operation(
                    number=document["begin"],
                    client=document["client"],
                    kind=document["kind"],
                    began_s=document["at"],
                    subnet=_subnet(document["subnet"]),
                    basis=document["basis"],
                    ttl_s=document["ttl"] if document["ttl"] is not None else NEVER,
                )
            else:
                begun = found[document["end"]]
                found[begun.number] = Operation(
                    number=begun.number,
                    client=begun.client,
                    kind=begun.kind,
                    began_s=begun.began_s,
                    ended_s=document["at"],
                    outcome=document["outcome"],
                    subnet=_subnet(document["subnet"]) or begun.subnet,
                    basis=begun.basis,
                    ttl_s=begun.ttl_s,
                    revision=document["revision"],
                    holdings=tuple(
                        Holding(parse_subnet_key(key), client, revision)
                        for key, client, revision in document["holdings"]
                    ),
                )
    return sorted(found.values(), key=lambda operation: operation.began_s)


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _subnet(key: str | None) -> Subnet | None:
    return parse_subnet_key(key) if key is not None else None
