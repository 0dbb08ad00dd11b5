"""A table as nft lists it, compared with what was written.

The lines of our chains are spelled as nft lists them. Sets and maps are
compared by their elements, whatever their order.
"""

import re
from collections.abc import Iterable, Iterator

from overlay.policy.network.table import PolicyRuleset

_BLOCK = re.compile(r"^\t(\w+ \w+) \{\n(.*?)^\t\}$", re.DOTALL | re.MULTILINE)
_ELEMENTS = re.compile(r"^\t\telements = \{([^}]*)\}\n", re.MULTILINE)


def difference(ruleset: PolicyRuleset, listing: str) -> str | None:
    """Return the first part of ``listing`` that differs, by its kind and name; None for none.

    ``listing`` is what ``nft --stateless list table`` prints.
    """
    wanted, there = dict(_blocks(str(ruleset))), dict(_blocks(listing))
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            return name
    return None


def _blocks(text: str) -> Iterator[tuple[str, tuple[str, frozenset[str]]]]:
    """Yield the parts of a table by name: what they say, and their elements."""
    for match in _BLOCK.finditer(text):
        name, body = match.groups()
        found = _ELEMENTS.search(body)
        elements = frozenset(_spelled(found[1].split(","))) if found else frozenset()
        yield name, (_ELEMENTS.sub("", body), elements)


def _spelled(elements: Iterable[str]) -> Iterator[str]:
    return (" ".join(each.split()) for each in elements)
