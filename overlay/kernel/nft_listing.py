"""The whole ruleset of the namespace, read through ``nft -j``; nothing is changed.

Our own table with its elements, all others without: sets of other programs
may hold a million. Two processes, some 10 ms each.
"""

from overlay.kernel.nft import NftError, run_nft
from overlay.policy.listing import Listing, merged, parse_listing
from overlay.policy.ruleset import TABLE


def read_ruleset() -> Listing:
    """Return every chain and rule, and the elements of our own sets. Raises NftError."""
    foreign = read_rules()
    if not any(" ".join(place[:2]) == TABLE for place in foreign.chains):
        return foreign
    return merged(foreign, _parsed(run_nft("-j", "list", "table", *TABLE.split())))


def read_rules() -> Listing:
    """Return every chain and rule; of no set the elements. Raises NftError."""
    return _parsed(run_nft("-j", "-t", "list", "ruleset"), has_elements=False)


def _parsed(text: str, *, has_elements: bool = True) -> Listing:
    try:
        return parse_listing(text, has_elements=has_elements)
    except ValueError as exc:
        msg = f"what nft lists cannot be read: {exc}"
        raise NftError(msg) from exc
