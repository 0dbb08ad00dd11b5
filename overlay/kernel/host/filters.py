"""Base chains of nftables, and the rules of a table, as ``nft --json`` lists them."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from overlay.kernel.base import KernelError
from overlay.model.document import parse_json

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; ``hook`` and ``policy`` are empty where others jump to it only."""

    family: str
    table: str
    name: str
    hook: str = ""
    policy: str = ""

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def list_chains() -> Sequence[Chain]:
    """Return every chain of the namespace. Raises KernelError."""
    return [
        Chain(
            str(found.get("family")),
            str(found.get("table")),
            str(found.get("name")),
            str(found.get("hook", "")),
            str(found.get("policy", "")),
        )
        for found in _listed("list", "chains", kind="chain")
    ]


def list_rules(family: str, table: str) -> Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]:
    """Return the rules of a table by chain, each a list of expressions (libnftables-json(5)).

    Raises KernelError.
    """
    rules: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for found in _listed("--stateless", "list", "table", family, table, kind="rule"):
        expressions = found.get("expr")
        if isinstance(expressions, list):
            # A statement without anything more to say is a bare word.
            rules.setdefault(str(found.get("chain")), []).append(
                [each if isinstance(each, dict) else {str(each): None} for each in expressions]
            )
    return rules


def _listed(*words: str, kind: str) -> list[dict[str, Any]]:
    try:
        done = subprocess.run(
            ["nft", "--json", *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as exc:
        msg = "no `nft` on the PATH; install the Debian package nftables"
        raise KernelError(msg) from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        msg = f"nft: {exc}"
        raise KernelError(msg) from exc
    if done.returncode != 0:
        msg = f"nft: {done.stderr.strip().partition(chr(10))[0] or done.returncode}"
        raise KernelError(msg)
    try:
        items = parse_json(done.stdout)["nftables"]
        return [item[kind] for item in items if isinstance(item.get(kind), dict)]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        msg = f"nft: an answer that cannot be read: {exc}"
        raise KernelError(msg) from exc
