"""The table ``inet overlay_policy`` in the kernel: changed in transactions, checked for drift.

Its elements change with every pod, so that what nft lists is not compared with
what was written but with what nft listed after that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from overlay.kernel.nft import NftError, OwnWrites, listed, run_nft
from overlay.policy.network.table import POLICY_TABLE, PolicyRuleset

_GONE: Final = f"table {POLICY_TABLE} {{}}\ndelete table {POLICY_TABLE}\n"


@dataclass(slots=True)
class NftPolicyTable:
    """What the kernel holds, as far as we know. One thread at a time.

    ``own`` is shared with what else of this process writes rules. All
    runs in the network namespace of the calling thread.
    """

    timeout_s: float = 30.0
    own: OwnWrites = field(default_factory=OwnWrites)
    _ruleset: PolicyRuleset | None = field(default=None, init=False)  # None: unknown
    _listing: str | None = field(default=None, init=False)  # as nft lists it, None: not asked
    _generation: int | None = field(default=None, init=False)  # when that was so

    def apply(self, ruleset: PolicyRuleset) -> bool:
        """Make the table this one, in one transaction; return whether anything was written.

        By what changed, where it is known what is there: counters of what
        stays go on. Raises NftError; what was there is there still.
        """
        old = self._ruleset
        text = ruleset.delta(old) if old is not None else None
        if text == "":
            self._ruleset = ruleset
            return False
        is_whole = text is None

        def change(_before: int) -> None:
            nonlocal is_whole
            if text is None or not self._try(text):
                is_whole, self._ruleset = True, None
                run_nft("-f", "-", text=ruleset.transaction, timeout_s=self.timeout_s)

        before, after = self.own.write(change)
        known = before if is_whole else self._generation  # whole: whatever was there before
        self._generation = after if self.own.are_all_since(known, after) else None
        self._ruleset, self._listing = ruleset, None
        return True

    def remember(self) -> None:
        """Ask nft how the table is listed, where only we wrote since; for when there is time."""
        if self._ruleset is None or self._listing is not None or self._generation is None:
            return
        listing = listed(POLICY_TABLE, self.timeout_s)
        now = self.own.generation()
        if self.own.are_all_since(self._generation, now):
            self._listing, self._generation = listing, now

    def is_ours(self) -> bool:
        """Return whether the kernel surely holds what was applied last.

        12 microseconds while nobody else wrote any rule since; after that the
        table is listed. Raises NftError.
        """
        if self._ruleset is None:
            return False
        now = self.own.generation()
        if self.own.are_all_since(self._generation, now):
            self._generation = now
            return True
        if self._listing is None or listed(POLICY_TABLE, self.timeout_s) != self._listing:
            return False
        self._generation = now
        return True

    def forget(self) -> None:
        """Write the whole table at the next ``apply``."""
        self._ruleset = self._listing = self._generation = None

    def exists(self) -> bool:
        """Return whether there is a table of our name. Raises NftError."""
        return listed(POLICY_TABLE, self.timeout_s) is not None

    def remove(self) -> bool:
        """Remove the table; return whether there was one. Raises NftError."""
        there = self.exists()
        if there:
            self.own.write(lambda _: run_nft("-f", "-", text=_GONE, timeout_s=self.timeout_s))
        self.forget()
        return there

    def counters(self) -> Mapping[str, tuple[int, int]]:
        """Return packets and bytes by counter, since it was made. Raises NftError."""
        text = run_nft("-j", "list", "counters", "table", *POLICY_TABLE.split())
        try:
            listing = json.loads(text)["nftables"]
            found = [item["counter"] for item in listing if "counter" in item]
            return {
                each["name"]: (int(each["packets"]), int(each["bytes"]))
                for each in found
                if each.get("table") == POLICY_TABLE.split()[1]
            }
        except (ValueError, LookupError, TypeError) as exc:
            msg = f"what nft lists of counters cannot be read: {exc}"
            raise NftError(msg) from exc

    def _try(self, text: str) -> bool:
        """Return False where the table is not what it was taken for; nothing was done then."""
        try:
            run_nft("-f", "-", text=text, timeout_s=self.timeout_s)
        except NftError:
            return False
        return True
