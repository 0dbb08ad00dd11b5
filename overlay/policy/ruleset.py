"""One nftables table as a value: chains as text, and named sets with their elements.

The text depends only on the values, so equal rulesets print alike, and two
rulesets whose chains are equal differ by set elements alone. Only integers
and ``ipaddress`` values become elements: no text from elsewhere reaches nft.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from typing import Final, Literal, TypeAlias

from overlay.model.address import Family, IPAddress, IPNetwork
from overlay.model.versioned import differing_members

TABLE: Final = "inet overlay"

_TYPE: Final = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}
Elements: TypeAlias = AbstractSet[IPAddress | IPNetwork]
NOBODY: Final = frozenset[IPAddress]()


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set of addresses, or of whole networks where ``interval``.

    ``nft add set inet overlay NAME { type TYPE; flags interval; }``
    """

    name: str
    family: Family
    elements: Elements = NOBODY
    interval: bool = False

    @property
    def definition(self) -> str:
        """Return the lines that make the set, without its elements."""
        flags = "\n\t\tflags interval" if self.interval else ""
        return f"\tset {self.name} {{\n\t\ttype {_TYPE[self.family]}{flags}"

    def __str__(self) -> str:
        listed = f"\n\t\telements = {{ {_listed(self.elements)} }}" if self.elements else ""
        return f"{self.definition}{listed}\n\t}}\n"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Our whole table. ``chains`` is the text of its chains, which no lease changes."""

    sets: tuple[NamedSet, ...] = ()
    chains: str = ""

    def __str__(self) -> str:
        body = "\n".join([*(str(each) for each in self.sets), self.chains]).rstrip("\n")
        return f"table {TABLE} {{\n{body}\n}}\n"

    @property
    def transaction(self) -> str:
        """Return what replaces the table, whatever it held, in one ``nft -f -``.

        The first line makes the second one work where there is no table yet.
        """
        return f"table {TABLE} {{}}\ndelete table {TABLE}\n{self}"

    @property
    def shape(self) -> tuple[object, ...]:
        """Return all but the elements; equal shapes list alike but for elements."""
        return (self.chains, *(each.definition for each in self.sets))

    def changes(self, old: "Ruleset") -> tuple["SetChange", ...] | None:
        """Return what turns ``old`` into this ruleset by set elements alone.

        Empty when they are equal; None where the whole table must be
        replaced: other chains or sets, or other elements of an interval set.
        The last change with the config only, and nft refuses an added
        interval that overlaps a deleted one of the same transaction.
        Elements are added before any is deleted. Costs what changed, where the
        sets remember it (``VersionedSet``).
        """
        if self.shape != old.shape:
            return None
        added: list[SetChange] = []
        deleted: list[SetChange] = []
        for before, after in zip(old.sets, self.sets, strict=True):
            come, gone = differing_members(before.elements, after.elements)
            if (come or gone) and after.interval:
                return None
            added += [SetChange("add", after.name, come)] if come else []
            deleted += [SetChange("delete", after.name, gone)] if gone else []
        return (*added, *deleted)

    def delta(self, old: "Ruleset") -> str | None:
        """Return ``changes`` as a script for nft; empty when there are none, None likewise."""
        changes = self.changes(old)
        return None if changes is None else "".join(map(str, changes))


@dataclass(frozen=True, slots=True)
class SetChange:
    """Elements that a set of the table gets or loses."""

    verb: Literal["add", "delete"]
    name: str
    elements: Elements

    def __str__(self) -> str:
        return f"{self.verb} element {TABLE} {self.name} {{ {_listed(self.elements)} }}\n"


def hosts(addresses: Iterable[IPAddress], family: Family) -> frozenset[IPAddress]:
    """Return the elements for the addresses of ``family``.

    A scoped address (``fe80::1%eth0``) is left out: a set of addresses cannot
    say the interface.
    """
    if family is Family.IPV4:
        return frozenset(a for a in addresses if isinstance(a, IPv4Address))
    return frozenset(a for a in addresses if isinstance(a, IPv6Address) and not a.scope_id)


def intervals(networks: Iterable[IPNetwork | None], family: Family) -> frozenset[IPNetwork]:
    """Return the elements for the networks of ``family``, none inside another.

    An interval set refuses elements that overlap.
    """
    kind = IPv4Network if family is Family.IPV4 else IPv6Network
    chosen = [
        # From the number, so that a scope id, which may hold any text, is lost.
        kind((int(network.network_address), network.prefixlen))
        for network in networks
        if network is not None and network.version == family.value
    ]
    return frozenset(collapse_addresses(chosen))  # type: ignore[type-var]  # one family by choice


def spelled(element: IPAddress | IPNetwork) -> str:
    """Return an element as nft lists it: a network of one address without its length.

    >>> spelled(IPv4Network("192.0.2.1/32"))
    '192.0.2.1'
    """
    if isinstance(element, IPv6Address):
        return str(IPv6Address(int(element)))  # a scope id may hold any text
    if isinstance(element, IPv4Network | IPv6Network) and element.num_addresses == 1:
        return str(element.network_address)
    return str(element)


def _listed(elements: Iterable[IPAddress | IPNetwork]) -> str:
    return ", ".join(spelled(element) for element in sorted(elements, key=_number))


def _number(element: IPAddress | IPNetwork) -> int:
    if isinstance(element, IPv4Network | IPv6Network):
        return int(element.network_address)
    return int(element)
