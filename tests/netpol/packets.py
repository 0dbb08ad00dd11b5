"""What a table does to one packet, read from its text: a small nft of our own, and a strict one.

Every construct that it does not know is an error, so that no rule is passed
over in silence. Semantics: nft(8), "verdict statements": ``accept`` ends the
base chain, ``drop`` and ``reject`` the packet, ``return`` the chain.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final, TypeAlias

from overlay.model.address import IPAddress
from overlay.model.netpol import Protocol

_TOKEN: Final = re.compile(r'"[^"\n]*"|[{},;=\n]|[^\s{},;="]+')
_BLOCKS: Final = frozenset({"set", "map", "chain", "counter", "quota", "limit"})
_ENDS: Final = frozenset({"accept", "drop", "return", "reject", "jump", "goto"})
# Fields of one word and of two; what stands for each is in Packet.
_FIELDS: Final = {
    "ip": {"saddr", "daddr", "protocol"},
    "ip6": {"saddr", "daddr", "nexthdr"},
    "meta": {"l4proto", "nfproto", "iifname", "oifname", "mark", "pkttype"},
    "th": {"dport", "sport"},
    "tcp": {"dport", "sport"},
    "udp": {"dport", "sport"},
    "sctp": {"dport", "sport"},
    "ct": {"state", "direction", "mark", "status"},
    "icmp": {"type", "code"},
    "icmpv6": {"type", "code"},
}
_BARE: Final = frozenset({"iifname", "oifname"})

Value: TypeAlias = IPAddress | int | str | None  # None: the packet has no such field
Element: TypeAlias = tuple[str, ...]  # as written, one word a part of a concatenation
Verdicts: TypeAlias = Iterable[tuple[Element, list[str]]]


class UnreadableError(Exception):
    """The text holds what this does not know."""


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, in the hook of a node."""

    source: IPAddress
    destination: IPAddress
    protocol: Protocol
    port: int
    iif: str = ""
    oif: str = ""
    source_port: int = 40000
    state: str = "new"

    def value(self, kind: str, name: str) -> Value:
        """Return what a field holds."""
        version = {"ip": 4, "ip6": 6}.get(kind)
        if version is not None:
            if self.source.version != version:
                return None
            return {"saddr": self.source, "daddr": self.destination}.get(
                name, self.protocol.name.lower()
            )
        if kind in {"th", "tcp", "udp", "sctp"}:
            if kind not in {"th", self.protocol.name.lower()}:
                return None
            return {"dport": self.port, "sport": self.source_port}[name]
        if kind in {"icmp", "icmpv6"}:
            return None
        if kind == "fib":  # asked at output alone, of what the node itself sends
            return "local"
        return {
            "l4proto": self.protocol.name.lower(),
            "nfproto": f"ipv{self.source.version}",
            "iifname": self.iif,
            "oifname": self.oif,
            "state": self.state,
            "direction": "original",
        }[name]


@dataclass(slots=True)
class Table:
    """One table as parsed."""

    chains: dict[str, list[list[str]]] = field(default_factory=dict)
    sets: dict[str, set[Element]] = field(default_factory=dict)
    maps: dict[str, dict[Element, list[str]]] = field(default_factory=dict)

    def passes(self, hook: str, packet: Packet) -> bool:
        """Return whether the packet passes all base chains of ``hook``, by their priority."""
        met = []
        for rules in self.chains.values():
            head = next((rule for rule in rules if rule[0] == "type"), None)
            if head is not None and head[3] == hook:
                met.append((_priority(head), rules))
        for _, rules in sorted(met, key=lambda each: each[0]):
            verdict = self._run(rules, packet, 0)
            if verdict == "drop" or (verdict is None and ["policy", "drop"] in rules):
                return False
        return True

    def _run(self, rules: Sequence[list[str]], packet: Packet, depth: int) -> str | None:
        """Return accept or drop; None where the chain comes to its end."""
        if depth > 16:
            msg = "jumps without end"
            raise UnreadableError(msg)
        for rule in rules:
            if rule[0] in {"type", "policy", "comment"}:
                continue
            verdict = self._rule(rule, packet)
            if verdict is None:
                continue
            if verdict[0] == "return":
                return None
            if verdict[0] in {"jump", "goto"}:
                decided = self._run(self.chains[verdict[1]], packet, depth + 1)
                if decided is not None or verdict[0] == "goto":
                    return decided
                continue
            return "accept" if verdict[0] == "accept" else "drop"
        return None

    def _rule(self, words: list[str], packet: Packet) -> list[str] | None:
        """Return the verdict of one rule, None where it has none for this packet."""
        at = 0
        while at < len(words):
            word = words[at]
            if word in _ENDS:
                return words[at:]
            if word in {"counter", "log", "limit", "meter"} and word not in _FIELDS:
                at = _after_statement(words, at)
                continue
            fields, at = _concatenation(words, at)
            values = [packet.value(kind, name) for kind, name in fields]
            if words[at] == "vmap":
                listed, at = self._mapped(words, at + 1)
                for element, verdict in listed:
                    if None not in values and _covers(element, values):
                        return verdict
                continue
            is_negated = words[at] == "!="
            listed_set, at = self._listed(words, at + is_negated)
            if None in values:
                return None
            if any(_covers(element, values) for element in listed_set) is is_negated:
                return None
        return None

    def _listed(self, words: list[str], at: int) -> tuple[Collection[Element], int]:
        if words[at].startswith("@"):
            return self.sets[words[at][1:]], at + 1
        if words[at] == "{":
            end = words.index("}", at)
            return elements_of(words[at + 1 : end]), end + 1
        end = at + 1
        while end < len(words) and words[end] in {",", "."}:  # established,related
            end += 2
        return elements_of(words[at:end]), end

    def _mapped(self, words: list[str], at: int) -> tuple[Verdicts, int]:
        if words[at].startswith("@"):
            return self.maps[words[at][1:]].items(), at + 1
        if words[at] != "{":
            msg = f"vmap of {words[at]}"
            raise UnreadableError(msg)
        end = words.index("}", at)
        return pairs_of(words[at + 1 : end]), end + 1


def parse_table(text: str) -> Table:
    """Return the table in ``text``. Raises UnreadableError."""
    table = Table()
    for kind, name, words in _blocks(words_of(text)):
        if kind == "chain":
            table.chains[name] = list(_lines(words))
        elif kind in {"set", "map"}:
            elements = _declared(words)
            if kind == "set":
                table.sets[name] = set(elements_of(elements))
            else:
                table.maps[name] = dict(pairs_of(elements))
    return table


def words_of(text: str) -> list[str]:
    """Return the words of nft's language, line ends among them."""
    return _TOKEN.findall(text)


def _blocks(words: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield kind, name and body of what stands in the one table's braces."""
    at = 0
    while at < len(words):
        if words[at] in _BLOCKS and at + 2 < len(words) and words[at + 2] == "{":
            depth, end = 1, at + 3
            while depth:
                depth += {"{": 1, "}": -1}.get(words[end], 0)
                end += 1
            yield words[at], words[at + 1], list(words[at + 3 : end - 1])
            at = end
        elif words[at] == "table" or words[at] in {"\n", "}", "{", ";"}:
            at += 4 if words[at] == "table" else 1
        else:
            msg = f"in a table: {' '.join(words[at : at + 6])!r}"
            raise UnreadableError(msg)


def _lines(words: Sequence[str]) -> Iterator[list[str]]:
    line: list[str] = []
    depth = 0
    for word in (*words, "\n"):
        depth += {"{": 1, "}": -1}.get(word, 0)
        if word in {"\n", ";"} and not depth:
            if line:
                yield line
            line = []
        elif word != "\n":
            line.append(word)


def _declared(words: Sequence[str]) -> list[str]:
    """Return the words between the braces of ``elements = { ... }``; none where there are none."""
    if "elements" not in words:
        return []
    at = list(words).index("elements")
    if words[at + 1 : at + 3] != ["=", "{"]:
        msg = f"elements without braces: {words[at : at + 4]}"
        raise UnreadableError(msg)
    return [word for word in words[at + 3 : list(words).index("}", at)] if word != "\n"]


def elements_of(words: Sequence[str]) -> list[Element]:
    """Return elements; parts of a concatenation are parted by dots that stand alone."""
    found: list[Element] = []
    parts: list[str] = []
    for word in (*words, ","):
        if word == ",":
            if parts:
                found.append(tuple(parts))
            parts = []
        elif word not in {".", "\n"}:
            parts.append(word)
    return found


def pairs_of(words: Sequence[str]) -> list[tuple[Element, list[str]]]:
    """Return the elements of a verdict map with their verdicts."""
    found = []
    pair: list[str] = []
    for word in (*words, ","):
        if word != ",":
            pair.append(word)
        elif pair:
            at = pair.index(":")
            found.append((elements_of(pair[:at])[0], pair[at + 1 :]))
            pair = []
    return found


def _concatenation(words: Sequence[str], at: int) -> tuple[list[tuple[str, str]], int]:
    fields = []
    while True:
        if words[at] in _BARE:
            fields.append(("meta", words[at]))
            at += 1
        elif words[at : at + 3] == ["fib", "saddr", "type"]:
            fields.append(("fib", "saddr type"))
            at += 3
        elif words[at] in _FIELDS and words[at + 1] in _FIELDS[words[at]]:
            fields.append((words[at], words[at + 1]))
            at += 2
        else:
            msg = f"no field: {' '.join(words[at:])!r}"
            raise UnreadableError(msg)
        if at >= len(words) or words[at] != ".":
            return fields, at
        at += 1


def _after_statement(words: Sequence[str], at: int) -> int:
    """Return where the rule goes on after a statement that neither matches nor decides.

    A ``limit`` would decide; it may only stand before a ``log`` that ends its rule.
    """
    if words[at] == "counter":
        at += 1
        return at + 2 if words[at : at + 1] == ["name"] else at
    if words[at] == "limit" and "log" not in words[at:]:
        msg = f"a limit that decides: {' '.join(words)!r}"
        raise UnreadableError(msg)
    while at < len(words) and words[at] not in _ENDS:
        at += 1
    if at < len(words) and "limit" in words[:at]:
        msg = f"a limit that decides: {' '.join(words)!r}"
        raise UnreadableError(msg)
    return at


def _covers(element: Element, values: Sequence[Value]) -> bool:
    if len(element) != len(values):
        msg = f"{element} beside {values}"
        raise UnreadableError(msg)
    return all(_holds(word, value) for word, value in zip(element, values, strict=True))


def _holds(word: str, value: Value) -> bool:
    if isinstance(value, str):
        name = word.strip('"')
        return value.startswith(name[:-1]) if name.endswith("*") else value == name
    low, dash, high = word.partition("-")
    if isinstance(value, int):
        return int(low) <= value <= int(high if dash else low)
    if value is None:
        return False
    if "/" in word:
        return value in ip_network(word)
    first, last = ip_address(low), ip_address(high if dash else low)
    return first.version == value.version and int(first) <= int(value) <= int(last)


def _priority(head: Sequence[str]) -> int:
    """Return the number in ``type filter hook forward priority filter - 9``."""
    named: Mapping[str, int] = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
    words: list[Any] = list(head[head.index("priority") + 1 :])
    base = named.get(words[0])
    if base is None:
        return int(words[0])
    return base + (int(words[2]) * (-1 if words[1] == "-" else 1) if len(words) > 2 else 0)
