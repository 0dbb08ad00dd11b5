"""Our nftables table in the kernel: replaced whole, changed by elements, checked for drift.

All runs in the network namespace of the calling thread. Nothing outside of
``table inet overlay`` is ever changed. One ``nft -f -`` is one transaction:
a ruleset that nft or the kernel refuses leaves what was there.
"""

import contextlib
import logging
import os
import re
import socket
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

from overlay.kernel.nft_elements import (
    NETLINK_NETFILTER,
    ElementsRefusedError,
    change_elements,
)
from overlay.kernel.rtnl import MessageError, attributes, decoder, split
from overlay.model.errors import OverlayError
from overlay.policy.ruleset import TABLE, Ruleset, spelled

log = logging.getLogger(__name__)

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NFT_MSG_NEWGEN: Final = (10 << 8) | 15
_NFT_MSG_GETGEN: Final = (10 << 8) | 16
_NFTA_GEN_ID, _NFTA_GEN_PROC_PID, _NFTA_GEN_PROC_NAME = 1, 2, 3
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_FAMILY: Final = struct.Struct("=BBH")  # struct nfgenmsg

_APPLY_ATTEMPTS: Final = 3
_REMEMBERED: Final = 64  # generations that we made, to tell them from others' later
_AT_LINE: Final = re.compile(r"^[^:\n]*:(\d+):\d+(?:-\d+)?: (.*)")
_SET: Final = re.compile(r"\tset (?P<name>\S+) \{\n.*?\n\t\}\n", re.DOTALL)
_ELEMENTS: Final = re.compile(r"\t\telements = \{(?P<elements>[^}]*)\}\n")


class NftError(OverlayError):
    """nft or the kernel refused; what was in the kernel before is there still.

    ``problem`` is the first line that nft wrote, ``line`` the number of the
    ruleset's line at fault and ``source`` its text, where nft names one.
    """

    def __init__(self, problem: str, line: int | None = None, source: str = "") -> None:
        self.problem = problem
        self.line = line
        self.source = source
        where = f" (line {line}: {_shortened(source)})" if line is not None else ""
        super().__init__(f"nftables: {problem}{where}")


class OwnWrites:
    """Which generations this process made, whichever of its tables it wrote: for any thread.

    A change of one table of ours makes nobody list the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: deque[int] = deque(maxlen=_REMEMBERED)

    @property
    def made(self) -> frozenset[int]:
        """Return the last of them."""
        return frozenset(self._made)

    def write(self, change: Callable[[int], object]) -> tuple[int, int]:
        """Make a change; return the generations before and after it. Raises what it raises.

        ``change`` is given the generation before.
        """
        with self._lock:
            before = generation()
            change(before)
            after = generation()
            if after == next_generation(before):  # else somebody else wrote in between
                self._made.append(after)
        return before, after

    def generation(self) -> int:
        """Return the ruleset's generation, once no write of ours goes on."""
        with self._lock:
            return generation()

    def are_all_since(self, before: int | None, now: int) -> bool:
        """Return whether nobody else wrote from a generation to another one."""
        made, step = self.made, before
        for _ in range(len(made) + 1):
            if step is None or step == now:
                break
            step = next_generation(step)
            if step not in made:
                return False
        return step == now


@dataclass(slots=True)
class NftTable:
    """The table ``inet overlay``, and what we know of it since we last wrote it.

    ``own`` is shared with what else of this process writes rules. Not for
    several threads at once.
    """

    timeout_s: float = 30.0
    own: OwnWrites = field(default_factory=OwnWrites)
    _applied: Ruleset | None = field(default=None, init=False)
    _listing: str = field(default="", init=False)  # as nft lists ``_applied``, elements left out
    _generation: int | None = field(default=None, init=False)

    def apply(self, ruleset: Ruleset) -> None:
        """Replace the whole table; counters begin anew. Repeating it is safe.

        When somebody else writes at the same moment it is done again, a few
        times, so that what is remembered is surely ours; where that was never
        so, nothing is. Raises NftError.
        """
        for _ in range(_APPLY_ATTEMPTS):
            before, _ = self.own.write(lambda _: self._nft("-f", "-", text=ruleset.transaction))
            listing = self._list()
            self._forget()
            if listing is not None:
                self._applied, self._listing = ruleset, _parse_listing(listing)[0]
            now = self.own.generation()
            if self.own.are_all_since(before, now):
                self._generation = now
                return
        self._forget()  # what was listed may be what others made of it

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
                change_elements(TABLE, changes, before)
            except ElementsRefusedError as exc:
                log.debug("%s; nft is asked", exc)
                self._nft("-f", "-", text="".join(map(str, changes)))

        _, after = self.own.write(change)
        self._generation = after if self.own.are_all_since(self._generation, after) else None
        if self._applied is not None:
            self._applied = new if self._applied.shape == new.shape else None

    def is_ours(self, ruleset: Ruleset) -> bool:
        """Return whether the kernel holds ``ruleset`` as we wrote it.

        12 microseconds while nobody else changed any ruleset since; after that the
        table is listed and compared (without counters, elements in any order)
        and the new generation is remembered. False too when this object never
        applied such a ruleset: apply it. Raises NftError.
        """
        if self._applied is None or self._applied != ruleset:
            return False
        now = self.own.generation()
        if self.own.are_all_since(self._generation, now):
            self._generation = now
            return True
        listing = self._list()
        if listing is None:
            return False
        static, elements = _parse_listing(listing)
        wanted = {each.name: frozenset(map(spelled, each.elements)) for each in ruleset.sets}
        if static != self._listing or elements != wanted:
            return False
        self._generation = now
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

    def _list(self) -> str | None:
        return listed(TABLE, self.timeout_s)

    def _nft(self, *arguments: str, text: str = "") -> str:
        return run_nft(*arguments, text=text, timeout_s=self.timeout_s)


def run_nft(*arguments: str, text: str = "", timeout_s: float = 30.0) -> str:
    """Run ``nft`` with ``text`` as its input and return what it printed. Raises NftError."""
    try:
        done = subprocess.run(
            ["nft", *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as exc:
        msg = "no `nft` on the PATH; install the Debian package nftables"
        raise NftError(msg) from exc
    except subprocess.TimeoutExpired as exc:
        msg = f"nft did not end within {timeout_s:g} s"
        raise NftError(msg) from exc
    except OSError as exc:
        msg = f"nft cannot be run: {exc}"
        raise NftError(msg) from exc
    if done.returncode != 0:
        raise _refusal(done.stderr, done.returncode, text)
    return done.stdout


def listed(table: str, timeout_s: float = 30.0) -> str | None:
    """Return ``nft --stateless list table TABLE``, None where there is none. Raises NftError."""
    try:
        return run_nft("--stateless", "list", "table", *table.split(), timeout_s=timeout_s)
    except NftError as exc:
        if "No such file or directory" in exc.problem:
            return None
        raise


def generation() -> int:
    """Return the generation of the ruleset: every transaction, whoever's, makes it another.

    ``NFT_MSG_GETGEN``, for all tables of the calling thread's network
    namespace together. Raises NftError.
    """
    request = _HEADER.pack(
        _HEADER.size + _FAMILY.size, _NFT_MSG_GETGEN, _NLM_F_REQUEST, 1, 0
    ) + _FAMILY.pack(socket.AF_UNSPEC, 0, 0)
    try:
        with contextlib.closing(
            socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
            )
        ) as channel:
            channel.settimeout(5.0)
            channel.sendto(request, (0, 0))
            answer = channel.recv(8192)
    except OSError as exc:
        msg = f"the ruleset's generation cannot be read: {exc}"
        raise NftError(msg) from exc
    return _parse_generation(answer)


def _parse_generation(answer: bytes) -> int:
    """Return what NFT_MSG_GETGEN was answered. Raises NftError for everything else."""
    try:
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", answer, _HEADER.size)
            msg = f"the ruleset's generation cannot be read: {os.strerror(-code)}"
            raise NftError(msg)
        found = parse_generations(answer)
    # Cut off; an error number that is none.
    except (struct.error, OverflowError, MessageError) as exc:
        msg = f"the kernel's answer holds no generation: {exc}"
        raise NftError(msg) from exc
    if found:
        return found[0].number
    msg = "the kernel's answer holds no generation"
    raise NftError(msg)


@dataclass(frozen=True, slots=True)
class Generation:
    """A ruleset's generation, and the process whose transaction made it."""

    number: int
    pid: int
    name: str  # as in /proc/PID/comm


@decoder
def parse_generations(data: bytes) -> list[Generation]:
    """Return the generations that netlink messages tell of; other messages are passed over.

    Raises MessageError.
    """
    found: list[Generation] = []
    for kind, _flags, _sequence, _data, start, end in split(data):
        if kind != _NFT_MSG_NEWGEN:
            continue
        parts = attributes(data, start + _FAMILY.size, end)
        (number,) = struct.unpack("!I", parts.get(_NFTA_GEN_ID, b""))
        pid = int.from_bytes(parts.get(_NFTA_GEN_PROC_PID, b""), "big")
        name = parts.get(_NFTA_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
        found.append(Generation(number, pid, name))
    return found


def next_generation(number: int) -> int:
    """Return the generation after ``number``; the kernel leaves out 0 when it wraps."""
    return (number + 1) & 0xFFFFFFFF or 1


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


def _refusal(stderr: str, status: int, text: str) -> NftError:
    first = next((line for line in stderr.splitlines() if line.strip()), "")
    if match := _AT_LINE.match(first):
        number = int(match[1])
        lines = text.splitlines()
        source = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        return NftError(match[2], number, source)
    return NftError(first or f"nft ended with status {status}")


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
