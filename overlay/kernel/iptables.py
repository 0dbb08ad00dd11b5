"""A way through an iptables FORWARD chain that drops, as Docker sets one.

An ``accept`` in our own nftables table does not keep a packet from a later
chain of the same hook, so pods need an accept there too: a chain of our own,
``OVERLAY-FORWARD``, jumped to from FORWARD before anything drops. What our
table rejected, as in isolated mode, is gone before it comes so far.

Both of iptables' faces are served, and only where somebody uses them: merely
to list a legacy table makes it, so the kernel is asked first. All runs in the
network namespace of the calling thread.
"""

import logging
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from overlay.kernel.base import KernelError
from overlay.model.address import FAMILIES, Family, IPNetwork, family_of
from overlay.model.document import parse_json
from overlay.model.node import POD_BRIDGE

CHAIN: Final = "OVERLAY-FORWARD"
COMMENT: Final = "overlay-fabric"

_TIMEOUT_S: Final = 15.0
_PLACE: Final = ("family", "table", "name")  # what names a chain
_LOCK_WAIT_S: Final = 5  # for the lock that all legacy iptables processes share
_LOG: Final = logging.getLogger(__name__)
_MARK: Final = f"-m comment --comment {COMMENT}"
_JUMP: Final = f"-A FORWARD {_MARK} -j {CHAIN}"
_COMMAND: Final = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_NFT_FAMILY: Final = {Family.IPV4: "ip", Family.IPV6: "ip6"}
# thread-self, not self: a thread may be in another network namespace than its process.
_LEGACY_TABLES: Final = {
    Family.IPV4: Path("/proc/thread-self/net/ip_tables_names"),
    Family.IPV6: Path("/proc/thread-self/net/ip6_tables_names"),
}


class _ToolError(Exception):
    """A program failed; the text is its first line."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A ``filter`` table that is there: its family, and the program that speaks for it."""

    family: Family
    variant: str  # nft | legacy
    command: str | None  # None where no such program is installed


def ensure(networks: Iterable[IPNetwork]) -> tuple[str, ...]:
    """Let pods of ``networks`` through wherever a FORWARD chain drops or rejects.

    Where none does any more, our chain is removed. Repeating it is safe and
    changes nothing. Returns what is in the way still, each a sentence for
    people.
    """
    pods = sorted(networks, key=str)
    problems: list[str] = []
    for table in _tables():
        wanted = [n for n in pods if family_of(n) is table.family]
        try:
            problems += _ensure_in(table, wanted)
        except _ToolError as exc:
            problems.append(f"{_COMMAND[table.family]} ({table.variant}): {exc}")
    return (*problems, *_other_dropping_chains())


def listing(family: Family) -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Return the chains of ``filter`` as ``iptables -S`` prints them, by program, then by name.

    Of the tables that are there. Raises KernelError with the program's words,
    and where a table has no program that could list it.
    """
    found: dict[str, Mapping[str, Sequence[str]]] = {}
    for table in _tables(forward=False):
        if table.family is not family:
            continue
        program = f"{_COMMAND[family]} ({table.variant})"
        if table.command is None:
            msg = f"{program} has rules and is not installed; install the Debian package iptables"
            raise KernelError(msg)
        try:
            found[table.command] = _listed(table.command)
        except _ToolError as exc:
            msg = f"{program}: {exc}"
            raise KernelError(msg) from exc
    return found


def legacy_listing(family: Family) -> tuple[str, Mapping[str, Sequence[str]]] | None:
    """Return the program and the chains of the legacy ``filter``; None where there is no table.

    Raises KernelError where it cannot be listed.
    """
    for table in _tables(forward=False):
        if table.family is family and table.variant == "legacy":
            found = listing(family)
            return next(((p, found[p]) for p in found if p == table.command), None)
    return None


def remove() -> tuple[str, ...]:
    """Remove our chain and the jumps to it, and return what could not be done."""
    problems: list[str] = []
    for table in _tables():
        if table.command is None:
            continue
        try:
            _remove_from(table.command, _listed(table.command))
        except _ToolError as exc:
            problems.append(f"{_COMMAND[table.family]} ({table.variant}): {exc}")
    return tuple(problems)


def _ensure_in(table: _Table, networks: list[IPNetwork]) -> Iterator[str]:
    if table.command is None:
        if table.variant == "legacy" or _policy_drops(table):
            yield (
                f"{_COMMAND[table.family]} ({table.variant}): a FORWARD chain may drop what pods "
                "send, and no program is installed to look or to let them through; install the "
                "Debian package iptables"
            )
        return
    chains = _listed(table.command)
    forward = chains.get("FORWARD", [])
    if not networks or not any(_drops(line) for line in forward):
        _remove_from(table.command, chains)
        return
    rules = [
        f"-A {CHAIN} {direction} {network} {_MARK} -j ACCEPT"
        for network in networks
        for direction in ("-s", "-d")
    ]
    # With br_netfilter the frames between pods on the bridge come here too, and
    # IPv6's neighbor discovery has other addresses than pods' ones.
    rules.append(f"-A {CHAIN} -i {POD_BRIDGE} -o {POD_BRIDGE} {_MARK} -j ACCEPT")
    if _leads_to_us(forward) and chains.get(CHAIN) == [f"-N {CHAIN}", *rules]:
        return
    _restore(
        table.command,
        [
            f":{CHAIN} - [0:0]",  # makes the chain, or empties it
            *rules,
            *(line.replace("-A", "-D", 1) for line in forward if line == _JUMP),
            _JUMP.replace("-A FORWARD", "-I FORWARD 1", 1),
        ],
    )
    _LOG.info("%s: pods may pass FORWARD, which drops", table.command)


def _remove_from(command: str, chains: dict[str, list[str]]) -> None:
    if CHAIN not in chains:
        return
    forward = chains.get("FORWARD", [])
    jumps = [line.replace("-A", "-D", 1) for line in forward if line == _JUMP]
    _restore(command, [*jumps, f"-F {CHAIN}", f"-X {CHAIN}"])
    _LOG.info("%s: chain %s removed", command, CHAIN)


def _drops(line: str) -> bool:
    words = line.split()
    if words[:1] == ["-P"]:
        return words[-1] == "DROP"
    return any(pair in {("-j", "DROP"), ("-j", "REJECT")} for pair in pairwise(words))


def _leads_to_us(forward: list[str]) -> bool:
    """Return whether there is one jump to our chain and no rule before it drops.

    It need not be the first: others insist on that too, and would be answered for ever.
    """
    if forward.count(_JUMP) != 1:
        return False
    rules = [line for line in forward if line.startswith("-A")]
    return not any(_drops(line) for line in rules[: rules.index(_JUMP)])


def _tables(*, forward: bool = True) -> Iterator[_Table]:
    """Yield the tables that are there; of nft's only those with a FORWARD chain, where asked."""
    chains = _nft_chains()
    is_one = _is_iptables_forward if forward else _is_iptables
    for family in FAMILIES:
        if any(is_one(chain, family) for chain in chains):
            yield _Table(family, "nft", _program(family, "nft"))
        try:
            names = _LEGACY_TABLES[family].read_text().split()
        except OSError:
            names = []
        if "filter" in names:
            yield _Table(family, "legacy", _program(family, "legacy"))


def _program(family: Family, variant: str) -> str | None:
    import shutil  # with what unpacks archives, half a MiB that a host without such rules is spared

    plain = _COMMAND[family]
    if shutil.which(f"{plain}-{variant}"):
        return f"{plain}-{variant}"
    if shutil.which(plain) is None:
        return None
    try:
        version = _run([plain, "-V"])
    except _ToolError:
        return None
    # Before 1.8 there was only what is now called legacy, and it did not say so.
    return plain if ("nf_tables" in version) is (variant == "nft") else None


def is_iptables(family: str, table: str, chain: str) -> bool:
    """Return whether an nftables chain is one of iptables' ``filter``, in its newer face."""
    return family in _NFT_FAMILY.values() and table == "filter" and chain.isupper()


def _nft_chains() -> list[dict[str, Any]]:
    try:
        return _parse_chains(_run(["nft", "-j", "list", "chains"]))
    except _ToolError:
        return []  # no nft, no nftables: whoever applies our own table says so


def _parse_chains(text: str) -> list[dict[str, Any]]:
    """Return the chains in an answer of ``nft -j``; what has not the form of one is left out."""
    try:
        items = parse_json(text)["nftables"]
        chains = [item["chain"] for item in items if "chain" in item]
    except (ValueError, KeyError, TypeError):
        return []
    return [
        chain
        for chain in chains
        if isinstance(chain, dict) and all(isinstance(chain.get(name), str) for name in _PLACE)
    ]


def _is_iptables(chain: dict[str, Any], family: Family) -> bool:
    """Return whether the chain is of the table that ``iptables-nft`` makes; any one of it will do.

    It makes them one by one, as they are used.
    """
    return chain["family"] == _NFT_FAMILY[family] and is_iptables(
        chain["family"], chain["table"], chain["name"]
    )


def _is_iptables_forward(chain: dict[str, Any], family: Family) -> bool:
    return (chain["family"], chain["table"], chain["name"]) == (
        _NFT_FAMILY[family],
        "filter",
        "FORWARD",
    )


def _policy_drops(table: _Table) -> bool:
    return any(
        chain.get("policy") == "drop"
        for chain in _nft_chains()
        if _is_iptables_forward(chain, table.family)
    )


def _other_dropping_chains() -> Iterator[str]:
    for chain in _nft_chains():
        if chain.get("hook") != "forward" or chain.get("policy") != "drop":
            continue
        if chain["family"] == "bridge" or any(_is_iptables_forward(chain, f) for f in FAMILIES):
            continue
        name = f"{chain['family']} {chain['table']} {chain['name']}"
        yield f"nftables: chain {name} drops by policy; accept the pod networks in it"


def _listed(command: str) -> dict[str, list[str]]:
    """Return the chains of the table, each as ``iptables -S CHAIN`` prints it.

    All at once: of a chain that is missing alone, iptables-nft 1.8.9 says that
    it is incompatible.
    """
    return _parse_rules(_run([command, "-w", str(_LOCK_WAIT_S), "-S"]))


def _parse_rules(text: str) -> dict[str, list[str]]:
    """Return the lines of ``iptables -S`` by the chain that they are of."""
    chains: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = _words(line)
        if len(words) > 1:
            chains.setdefault(words[1], []).append(shlex.join(words))
    return chains


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _restore(command: str, lines: list[str]) -> None:
    """Apply lines of ``iptables-save``'s form in one transaction, leaving all else alone."""
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    _run([f"{command}-restore", "--noflush", "-w", str(_LOCK_WAIT_S)], text)


def _run(argv: list[str], text: str = "") -> str:
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        msg = f"{argv[0]} did not end within {_TIMEOUT_S:g} s"
        raise _ToolError(msg) from exc
    except OSError as exc:
        msg = f"{argv[0]} cannot be run: {exc.strerror or exc}"
        raise _ToolError(msg) from exc
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if line.strip()), "")
        raise _ToolError(first or f"{argv[0]} ended with status {done.returncode}")
    return done.stdout
