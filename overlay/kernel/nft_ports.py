"""The table ``bridge overlay`` in the kernel: changed port by port, and checked for drift."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from overlay.kernel.nft import NftError, listed, run_nft
from overlay.kernel.nft_generation import OwnWrites
from overlay.policy.ports import PORT_TABLE, Port, change, whole_table

_ATTEMPTS: Final = 3


@dataclass(slots=True)
class PortTable:
    """What the kernel holds for the bridge's ports, as far as we know. One thread at a time.

    ``own`` is shared with what else of this process writes rules.
    """

    own: OwnWrites = field(default_factory=OwnWrites)
    _ports: frozenset[Port] | None = field(default=None, init=False)  # None: unknown
    _listing: str | None = field(default=None, init=False)  # as nft lists ``_ports``
    _generation: int | None = field(default=None, init=False)  # when that was so

    def hold(self, ports: Iterable[Port]) -> None:
        """Make the table one of exactly these ports; nothing is done where it is. Raises NftError.

        A port that stays is judged by the same rules all the time.
        """
        wanted = frozenset(ports)
        if wanted == self._ports:
            return
        is_whole = False

        def write(_before: int) -> None:
            nonlocal is_whole
            if self._ports is None or not self._change(self._ports, wanted):
                is_whole = True
                run_nft("-f", "-", text=whole_table(wanted))

        before, after = self.own.write(write)
        known = before if is_whole else self._generation  # whole: whatever was there before
        self._generation = after if self.own.are_all_since(known, after) else None
        self._ports, self._listing = wanted, None

    def _change(self, old: frozenset[Port], new: frozenset[Port]) -> bool:
        """Return False where the table is no longer that of ``old``; nothing was done then."""
        try:
            run_nft("-f", "-", text=change(old, new))
        except NftError:
            return False
        return True

    def audit(self, ports: Iterable[Port]) -> bool:
        """Make the table one of these ports, whoever changed it; return whether it was another's.

        12 microseconds while nobody else wrote any rule since. After that the
        table is listed and compared with how it was listed last; where that
        was before a change of ours, it is written once more. Raises NftError.
        """
        wanted = frozenset(ports)
        if wanted != self._ports:
            self.hold(wanted)
            if self._generation is not None:
                return False
        now = self.own.generation()
        if self.own.are_all_since(self._generation, now):
            self._generation = now
            return False
        known, self._listing = self._listing, None
        if known is not None and listed(PORT_TABLE) == known:
            self._listing, self._generation = known, now
            return False
        for _ in range(_ATTEMPTS):
            before, _ = self.own.write(lambda _: run_nft("-f", "-", text=whole_table(wanted)))
            self._listing = listed(PORT_TABLE)
            self._ports, self._generation = wanted, self.own.generation()
            if self.own.are_all_since(before, self._generation):
                break
        return known is not None

    def remove(self) -> None:
        """Remove the table; nothing is done where there is none. Raises NftError."""
        if self._ports is None and listed(PORT_TABLE) is None:
            return
        self._ports = self._listing = self._generation = None
        run_nft("-f", "-", text=f"table {PORT_TABLE} {{}}\ndelete table {PORT_TABLE}\n")
