"""Our nftables table in the kernel: replaced whole, changed by elements, checked for drift.

All runs in the network namespace of the calling thread. Nothing outside of
``table inet overlay`` is ever changed. One ``nft -f -`` is one transaction:
a ruleset that nft or the kernel refuses leaves what was there.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

from overlay.kernel.nft import listed, run_nft
from overlay.kernel.nft_elements import ElementsRefusedError, change_elements
from overlay.kernel.nft_generation import OwnTransactions, OwnWrites, is_later
from overlay.policy.ruleset import TABLE, Ruleset, spelled

log = logging.getLogger(__name__)

_APPLY_ATTEMPTS: Final = 3
_SET: Final = re.compile(r"\tset (?P<name>\S+) \{\n.*?\n\t\}\n", re.DOTALL)
_ELEMENTS: Final = re.compile(r"\t\telements = \{(?P<elements>[^}]*)\}\n")


@dataclass(slots=True)
class NftTable:
    """The table ``inet overlay``, and what we know of it since we last wrote it.

    ``own`` is shared with what else of this process writes rules. Not for
    several threads at once.
    """

    timeout_s: float = 30.0
    own: OwnWrites = field(default_factory=OwnWrites)
    _transactions: OwnTransactions = field(default_factory=OwnTransactions, init=False)
    _right_at: int | None = field(default=None, init=False)  # what others did up to it is undone
    _applied: Ruleset | None = field(default=None, init=False)
    _listing: str = field(default="", init=False)  # as nft lists ``_applied``, elements left out
    _generation: int | None = field(default=None, init=False)

    def apply(self, ruleset: Ruleset) -> None:
        """Replace the whole table; counters begin anew. Repeating it is safe.

        When somebody else writes at the same moment it is done again, a few
        times, so that what is remembered is surely ours; where that was never
        so, nothing is. It is listed only where it is not known yet how nft lists
        such a table. Raises NftError.
        """
        known = self._applied is not None and self._applied.shape == ruleset.shape
        listing = self._listing if known else ""
        for _ in range(_APPLY_ATTEMPTS):
            before = self._write(lambda _: self._nft("-f", "-", text=ruleset.transaction))[0]
            self._forget()
            if not listing:
                listing = _parse_listing(self._list() or "")[0]
            now = self.own.generation()
            if self.own.are_all_since(before, now):
                self._right_at = before
                if listing:
                    self._applied, self._listing, self._generation = ruleset, listing, now
                return
            listing = ""  # it may be of what others made of it

    @property
    def is_remembered(self) -> bool:
        """Return whether it is known how nft lists what was applied."""
        return self._applied is not None

    def apply_delta(self, old: Ruleset, new: Ruleset) -> None:
        """Turn ``old``, which the kernel must hold, into ``new``.

        By elements alone where that is possible, so that counters go on, else
        by ``apply``. Nothing is done when both are equal. Raises NftError,
        also when the table is no longer ``old``: call ``apply`` then.
        """
        changes = new.changes(old)
        if changes is None:
            self.apply(new)
            return
        if not changes:
            return

        def change(before: int) -> None:
            try:
                change_elements(TABLE, changes, before, self.own.channel)
            except ElementsRefusedError as exc:
                log.debug("%s; nft is asked", exc)
                self._nft("-f", "-", text="".join(map(str, changes)))

        _, after = self._write(change)
        self._generation = after if self.own.are_all_since(self._generation, after) else None
        if self._applied is not None:
            self._applied = new if self._applied.shape == new.shape else None

    def foreign(self, told: Iterable[int]) -> tuple[int, ...]:
        """Return which of the transactions that touched the table, by generation, are not ours.

        Ask once for each that the kernel tells of.
        """
        return tuple(number for number in told if not self._transactions.takes(number))

    def is_undone(self, number: int) -> bool:
        """Return whether the table was right, or written whole, after another's transaction."""
        return self._right_at is not None and not is_later(number, self._right_at)

    def is_ours(self, ruleset: Ruleset) -> bool:
        """Return whether the kernel holds ``ruleset`` as we wrote it.

        5 microseconds while nobody else changed any ruleset since; after that the
        table is listed and compared (without counters, elements in any order)
        and the new generation is remembered. False too when this object never
        applied such a ruleset: apply it. Raises NftError.
        """
        if self._applied is None or self._applied != ruleset:
            return False
        now = self.own.generation()
        if self.own.are_all_since(self._generation, now):
            self._generation = self._right_at = now
            return True
        listing = self._list()
        if listing is None:
            return False
        static, elements = _parse_listing(listing)
        wanted = {each.name: frozenset(map(spelled, each.elements)) for each in ruleset.sets}
        if static != self._listing or elements != wanted:
            return False
        self._generation = self._right_at = now
        return True

    def exists(self) -> bool:
        """Return whether there is a table of our name. Raises NftError."""
        return self._list() is not None

    def delete(self) -> None:
        """Remove the table and all in it; nothing is done where there is none. Raises NftError."""
        self._forget()
        self._nft("-f", "-", text=f"table {TABLE} {{}}\ndelete table {TABLE}\n")

    def _forget(self) -> None:
        self._applied, self._listing, self._generation = None, "", None

    def _write(self, change: Callable[[int], object]) -> tuple[int, int]:
        before, after = self.own.write(change)
        self._transactions.note(before, after)
        return before, after

    def _list(self) -> str | None:
        return listed(TABLE, self.timeout_s)

    def _nft(self, *arguments: str, text: str = "") -> str:
        return run_nft(*arguments, text=text, timeout_s=self.timeout_s)


def _parse_listing(listing: str) -> tuple[str, dict[str, frozenset[str]]]:
    """Return a table's listing without elements, and the elements of each set.

    What is no address (somebody else put it there) makes the listing differ.
    """
    sets: dict[str, frozenset[str]] = {}
    static = listing
    for match in _SET.finditer(listing):
        block = match.group()
        found = _ELEMENTS.search(block)
        words = found["elements"].split(",") if found else []
        with contextlib.suppress(ValueError):
            sets[match["name"]] = frozenset(spelled(ip_network(word.strip())) for word in words)
            static = static.replace(block, _ELEMENTS.sub("", block))
    return static, sets
