"""The table ``inet overlay_policy`` in the kernel: changed in transactions, checked for drift.

Others write rules all the time, kube-proxy with each Service, so that the
ruleset's generation says little; the kernel tells whose table a transaction touched.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from overlay.kernel.nft import NftError, listed, run_nft
from overlay.kernel.nft_generation import OwnTransactions, OwnWrites
from overlay.policy.network.listed import difference
from overlay.policy.network.table import POLICY_TABLE, PolicyRuleset

_GONE: Final = f"table {POLICY_TABLE} {{}}\ndelete table {POLICY_TABLE}\n"


@dataclass(slots=True)
class NftPolicyTable:
    """What the kernel holds, as far as we know. One thread writes; ``difference`` is for another.

    ``own`` is shared with what else of this process writes rules. All
    runs in the network namespace of the calling thread.
    """

    timeout_s: float = 30.0
    own: OwnWrites = field(default_factory=OwnWrites)
    _ruleset: PolicyRuleset | None = field(default=None, init=False)  # None: unknown
    _generation: int | None = field(default=None, init=False)  # when that was so, None: not sure
    _transactions: OwnTransactions = field(default_factory=OwnTransactions, init=False)
    _begun: int = field(default=0, init=False)  # writes, to tell whether one came between

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
        self._begun += 1
        is_whole = text is None

        def change(_before: int) -> None:
            nonlocal is_whole
            if text is None or not self._try(text):
                is_whole, self._ruleset = True, None
                self._generation = None
                run_nft("-f", "-", text=ruleset.transaction, timeout_s=self.timeout_s)

        before, after = self.own.write(change)
        self._transactions.note(before, after)
        known = before if is_whole else self._generation  # whole: whatever was there before
        self._generation = after if self.own.are_all_since(known, after) else None
        self._ruleset = ruleset
        return True

    def is_own(self, number: int) -> bool:
        """Return whether the transaction that made this generation, and touched the table, is ours.

        Ask once for each that the kernel tells of.
        """
        return self._transactions.takes(number)

    def difference(self) -> str | None:
        """Return what in the kernel is not as it was written last, None where all of it is.

        12 microseconds where nobody wrote any rule since; else the table is
        listed. For any thread; None also where it is not known what should be
        there. Raises NftError, also where there was a write meanwhile.
        """
        begun, ruleset = self._begun, self._ruleset
        if ruleset is None or self.own.are_all_since(self._generation, self.own.generation()):
            return None
        listing = listed(POLICY_TABLE, self.timeout_s)
        if listing is None:
            found: str | None = f"the table {POLICY_TABLE}"
        else:
            found = difference(ruleset, listing)
        if begun != self._begun or ruleset is not self._ruleset:
            msg = "the table was written while it was listed"
            raise NftError(msg)
        return found

    def forget(self) -> None:
        """Write the whole table at the next ``apply``."""
        self._ruleset = self._generation = None

    def exists(self) -> bool:
        """Return whether there is a table of our name. Raises NftError."""
        return listed(POLICY_TABLE, self.timeout_s) is not None

    def remove(self) -> bool:
        """Remove the table; return whether there was one. Raises NftError."""
        there = self.exists()
        self._begun += 1
        if there:
            window = self.own.write(
                lambda _: run_nft("-f", "-", text=_GONE, timeout_s=self.timeout_s)
            )
            self._transactions.note(*window)
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
