"""The table ``inet overlay_policy`` as a value, whole or as the change from another.

Either is one transaction of ``nft -f -``: the kernel judges each packet by the
old table or by the new one, never by something between. All names are our
own, made of digests, and all elements of addresses and numbers: no text from
objects reaches nft.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from overlay.policy.network.classes import Direction

POLICY_TABLE: Final = "inet overlay_policy"


@dataclass(frozen=True, slots=True)
class PolicySet:
    """``nft add set inet overlay_policy NAME { type TYPE; flags interval; }``."""

    name: str
    type: str
    elements: frozenset[str] = frozenset()
    interval: bool = False

    @property
    def body(self) -> str:
        """Return what stands between its braces, the elements left out."""
        return f"type {self.type};" + (" flags interval;" if self.interval else "")


@dataclass(frozen=True, slots=True)
class PolicyMap:
    """A verdict map by address: ``elements`` are the chains to jump to."""

    name: str
    type: str
    elements: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Denial:
    """Who refuses: what a counter and a log prefix of this ``ident`` stand for.

    ``policies`` are as people write them, ``NAMESPACE/NAME`` or a cluster
    policy's name; there are none for pods that nobody knows yet
    (``direction`` is None then). ``audited`` are only counted.
    """

    ident: str
    direction: Direction | None
    policies: tuple[str, ...] = ()
    audited: bool = False

    @property
    def counter(self) -> str:
        """Return the name of its counter."""
        return f"ov_{self.ident}"

    @property
    def log_prefix(self) -> str:
        """Return what its packets carry through NFLOG."""
        return f"overlay-policy {self.ident} "


@dataclass(frozen=True, slots=True)
class PolicyRuleset:
    """The whole table. Chains are lines by name; ``base`` are those with hooks."""

    sets: Mapping[str, PolicySet] = field(default_factory=dict)
    maps: Mapping[str, PolicyMap] = field(default_factory=dict)
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    base: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    denials: Mapping[str, Denial] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"\tcounter {self.denials[ident].counter} {{\n\t}}\n" for ident in self._idents]
        for _, each in sorted(self.sets.items()):
            flags = "\t\tflags interval\n" if each.interval else ""
            elements = _elements_line(each.elements)
            parts.append(f"\tset {each.name} {{\n\t\ttype {each.type}\n{flags}{elements}\t}}\n")
        parts += [_chain(name, lines) for name, lines in self._ordered]
        for _, verdicts in sorted(self.maps.items()):
            elements = _elements_line(_members(verdicts.elements))
            body = f"\t\ttype {verdicts.type} : verdict\n{elements}"
            parts.append(f"\tmap {verdicts.name} {{\n{body}\t}}\n")
        parts += [_chain(name, lines) for name, lines in sorted(self.base.items())]
        body = "\n".join(parts)
        return f"table {POLICY_TABLE} {{\n{body}}}\n"

    @property
    def transaction(self) -> str:
        """Return what replaces the table, whatever it held; counters begin anew."""
        return f"table {POLICY_TABLE} {{}}\ndelete table {POLICY_TABLE}\n{self}"

    @property
    def _idents(self) -> list[str]:
        return sorted(self.denials)

    @property
    def _ordered(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return the chains, those that others go to first."""
        return sorted(self.chains.items(), key=lambda item: (_RANK.get(item[0][:5], 3), item[0]))

    def delta(self, old: "PolicyRuleset") -> str | None:
        """Return what turns ``old``, which the kernel holds, into this table.

        Empty where they are equal; None where the whole table must be replaced
        (hooks or maps differ, which options decide). Counters of what stays go
        on. Elements are deleted before others are added: an interval may not
        meet one that it replaces.
        """
        if self.base != old.base or self.maps.keys() != old.maps.keys():
            return None
        come: list[str] = []
        gone: list[str] = []
        self._counters(old, come, gone)
        gone_chains = [name for name in old.chains if name not in self.chains]
        new_chains = {
            name: lines
            for name, lines in self._ordered
            if old.chains.get(name) is not lines and old.chains.get(name) != lines
        }
        come += [_line("flush chain", name) for name in new_chains if name in old.chains]
        come += [_line("add chain", name) for name in new_chains if name not in old.chains]
        gone_sets: list[str] = []
        self._sets(old, come, gone_sets)
        for name, lines in new_chains.items():
            come += [_line("add rule", f"{name} {line}") for line in lines]
        for name, verdicts in self.maps.items():
            before = old.maps[name].elements
            after = verdicts.elements
            if before is after:
                continue
            removed = {a for a, chain in before.items() if after.get(a) != chain}
            added = {a: chain for a, chain in after.items() if before.get(a) != chain}
            come += _change("delete", name, removed)
            come += _change("add", name, _members(added))
        gone = [
            *(_line("flush chain", name) for name in gone_chains),
            *(_line("delete chain", name) for name in gone_chains),
            *gone_sets,
            *gone,
        ]
        return "".join(come + gone)

    def _counters(self, old: "PolicyRuleset", come: list[str], gone: list[str]) -> None:
        come += [
            _line("add counter", self.denials[ident].counter)
            for ident in self._idents
            if ident not in old.denials
        ]
        gone += [
            _line("delete counter", old.denials[ident].counter)
            for ident in sorted(old.denials)
            if ident not in self.denials
        ]

    def _sets(self, old: "PolicyRuleset", come: list[str], gone: list[str]) -> None:
        for name, each in sorted(self.sets.items()):
            before = old.sets.get(name)
            if before is each:
                continue
            if before is None:
                come.append(_line("add set", f"{name} {{ {each.body} }}"))
                come += _change("add", name, each.elements)
            elif before.elements != each.elements:
                come += _change("delete", name, before.elements - each.elements)
                come += _change("add", name, each.elements - before.elements)
        gone += [_line("delete set", name) for name in sorted(old.sets) if name not in self.sets]


# Where chains may go to one another: refusals, then the tiers after the first, then entries.
_RANK: Final = {"ov_d_": 0, "ov_n_": 1, "ov_c_": 2}


def _line(verb: str, rest: str) -> str:
    kind, _, what = verb.partition(" ")
    return f"{kind} {what} {POLICY_TABLE} {rest}\n"


def _change(verb: str, name: str, elements: Iterable[str]) -> list[str]:
    listed = ", ".join(sorted(elements))
    return [_line(f"{verb} element", f"{name} {{ {listed} }}")] if listed else []


def _members(elements: Mapping[str, str]) -> list[str]:
    return [f"{address} : jump {chain}" for address, chain in elements.items()]


def _elements_line(elements: Iterable[str]) -> str:
    listed = ", ".join(sorted(elements))
    return f"\t\telements = {{ {listed} }}\n" if listed else ""


def _chain(name: str, lines: Iterable[str]) -> str:
    body = "".join(f"\t\t{line}\n" for line in lines)
    return f"\tchain {name} {{\n{body}\t}}\n"
