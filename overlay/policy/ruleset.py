"""One nftables table as a value: chains as text, and named sets with their elements.

The text depends only on the values, so equal rulesets print alike, and two
rulesets whose chains are equal differ by set elements alone. Only integers
and ``ipaddress`` values become elements: no text from elsewhere reaches nft.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from typing import Final, TypeAlias

from overlay.model.address import Family, IPAddress, IPNetwork

TABLE: Final = "inet overlay"

_TYPE: Final = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}
Elements: TypeAlias = frozenset[IPNetwork]


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set of addresses, or of whole networks where ``interval``.

    ``nft add set inet overlay NAME { type TYPE; flags interval; }``
    """

    name: str
    family: Family
    elements: Elements = frozenset()
    interval: bool = False

    @property
    def definition(self) -> str:
        """Return the lines that make the set, without its elements."""
        flags = "\n\t\tflags interval" if self.interval else ""
        return f"\tset {self.name} {{\n\t\ttype {_TYPE[self.family]}{flags}"

    def __str__(self) -> str:
        listed = f"\n\t\telements = {{ {_spelled(self.elements)} }}" if self.elements else ""
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

    def delta(self, old: "Ruleset") -> str | None:
        """Return what turns ``old`` into this ruleset by set elements alone.

        Empty text when they are equal; None where the whole table must be
        replaced: other chains or sets, or other elements of an interval set.
        The last change with the config only, and nft refuses an added
        interval that overlaps a deleted one of the same transaction.
        Elements are added before any is deleted.
        """
        if self.shape != old.shape:
            return None
        added: list[str] = []
        deleted: list[str] = []
        for before, after in zip(old.sets, self.sets, strict=True):
            if before.elements == after.elements:
                continue
            if after.interval:
                return None
            added += _change("add", after.name, after.elements - before.elements)
            deleted += _change("delete", after.name, before.elements - after.elements)
        return "".join(added + deleted)


def hosts(addresses: Iterable[IPAddress], family: Family) -> Elements:
    """Return the elements for the addresses of ``family``.

    A scoped address (``fe80::1%eth0``) is left out: a set of addresses cannot
    say the interface.
    """
    return frozenset(
        _network(int(address), family.bits, family)
        for address in addresses
        if address.version == family.value
        and not (isinstance(address, IPv6Address) and address.scope_id)
    )


def intervals(networks: Iterable[IPNetwork | None], family: Family) -> Elements:
    """Return the elements for the networks of ``family``, none inside another.

    An interval set refuses elements that overlap.
    """
    chosen = [
        _network(int(network.network_address), network.prefixlen, family)
        for network in networks
        if network is not None and network.version == family.value
    ]
    return frozenset(collapse_addresses(chosen))  # type: ignore[type-var]  # one family by choice


def _network(address: int, prefixlen: int, family: Family) -> IPNetwork:
    # From the number, so that a scope id, which may hold any text, is lost.
    kind = IPv4Network if family is Family.IPV4 else IPv6Network
    return kind((address, prefixlen))


def _change(verb: str, name: str, elements: Elements) -> list[str]:
    if not elements:
        return []
    return [f"{verb} element {TABLE} {name} {{ {_spelled(elements)} }}\n"]


def _spelled(elements: Elements) -> str:
    ordered = sorted(elements, key=lambda n: (int(n.network_address), n.prefixlen))
    return ", ".join(
        str(n.network_address if n.prefixlen == n.max_prefixlen else n) for n in ordered
    )
