"""The whole ruleset of the namespace, read through ``nft -j``; nothing is changed.

Our own tables with their elements, all others without: sets of other programs
may hold a million. A process more for each of ours, some 10 ms each.
"""

from overlay.kernel.nft import NftError, run_nft
from overlay.policy.listing import Listing, merged, parse_listing
from overlay.policy.verdict import OWN_TABLES


def read_ruleset() -> Listing:
    """Return every chain and rule, and the elements of our own sets. Raises NftError."""
    found = read_rules()
    there = {" ".join(place[:2]) for place in found.chains}
    for table in OWN_TABLES:
        if table in there:
            found = merged(found, _parsed(run_nft("-j", "list", "table", *table.split())))
    return found


def read_rules() -> Listing:
    """Return every chain and rule; of no set the elements. Raises NftError."""
    return _parsed(run_nft("-j", "-t", "list", "ruleset"), has_elements=False)


def _parsed(text: str, *, has_elements: bool = True) -> Listing:
    try:
        return parse_listing(text, has_elements=has_elements)
    except ValueError as exc:
        msg = f"what nft lists cannot be read: {exc}"
        raise NftError(msg) from exc
