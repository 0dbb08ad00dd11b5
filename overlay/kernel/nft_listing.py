"""The whole ruleset of the namespace, read through ``nft -j``; nothing is changed.

Our own table with its elements, all others without: sets of other programs
may hold a million. Two processes, some 10 ms each.
"""

import subprocess
from typing import Final

from overlay.kernel.nft import NftError
from overlay.policy.listing import Listing, merged, parse_listing
from overlay.policy.ruleset import TABLE

_TIMEOUT_S: Final = 5.0


def read_ruleset() -> Listing:
    """Return every chain and rule, and the elements of our own sets. Raises NftError."""
    foreign = _parsed(_nft("-j", "-t", "list", "ruleset"), has_elements=False)
    if not any(" ".join(place[:2]) == TABLE for place in foreign.chains):
        return foreign
    return merged(foreign, _parsed(_nft("-j", "list", "table", *TABLE.split())))


def _parsed(text: str, *, has_elements: bool = True) -> Listing:
    try:
        return parse_listing(text, has_elements=has_elements)
    except ValueError as exc:
        msg = f"what nft lists cannot be read: {exc}"
        raise NftError(msg) from exc


def _nft(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["nft", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        msg = f"nft did not end within {_TIMEOUT_S:g} s"
        raise NftError(msg) from exc
    except OSError as exc:
        msg = f"nft cannot be run: {exc.strerror or exc}; install the Debian package nftables"
        raise NftError(msg) from exc
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if line.strip()), "")
        raise NftError(first or f"nft ended with status {done.returncode}")
    return done.stdout
