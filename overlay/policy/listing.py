"""What ``nft -j list ruleset`` prints, as values: chains, their rules, elements of sets.

Lenient: what has not the form of a chain, a rule or a set is left out. Form:
libnftables-json(5). An expression stays as it is: ``verdict`` reads it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final, TypeAlias

from overlay.model.address import IPAddress
from overlay.model.document import parse_json

Place: TypeAlias = tuple[str, str, str]  # family, table, name
Elements: TypeAlias = tuple[Any, ...]
_LEFT_OUT: Final = frozenset({"counter", "comment"})


@dataclass(frozen=True, slots=True)
class ListedRule:
    """One rule. ``expressions`` are as nft prints them, in order.

    ``text`` is how its own program shows it, where that is not nft.
    """

    handle: int
    expressions: tuple[Any, ...]
    comment: str = ""
    text: str = ""

    @property
    def packets(self) -> int | None:
        """Return what its counter says, None where it has none."""
        for each in self.expressions:
            counter = each.get("counter") if isinstance(each, dict) else None
            if isinstance(counter, dict) and isinstance(counter.get("packets"), int):
                return int(counter["packets"])
        return None

    def __str__(self) -> str:
        if self.text:
            return self.text
        words = [
            spelled_expression(each)
            for each in self.expressions
            if not (isinstance(each, dict) and _LEFT_OUT & each.keys())
        ]
        if self.comment:
            words.append(f'comment "{self.comment}"')
        return " ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class ListedChain:
    """One chain; ``hook`` is empty where others jump to it."""

    place: Place
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    is_nat: bool = False
    rules: tuple[ListedRule, ...] = ()

    @property
    def name(self) -> str:
        """Return family, table and name, as nft's commands take them; of legacy, as its own do."""
        return spelled_place(self.place)


def is_legacy(place: Place) -> bool:
    """Return whether a chain is one of iptables-legacy: its table has the program's name."""
    return place[1].startswith(("iptables", "ip6tables"))


def spelled_place(place: Place) -> str:
    """Return the words that name a chain to its own program."""
    return " ".join(place[1:] if is_legacy(place) else place)


@dataclass(frozen=True, slots=True)
class Listing:
    """A ruleset. A set of unknown elements (listed tersely) is not in ``sets``.

    A map is a set of pairs.
    """

    chains: Mapping[Place, ListedChain] = field(default_factory=dict)
    sets: Mapping[Place, Elements] = field(default_factory=dict)

    def at(self, hook: str, family: str) -> list[ListedChain]:
        """Return the base chains of a hook that a packet of ``ip`` or ``ip6`` meets, in order."""
        met = {"inet", family}
        found = [c for c in self.chains.values() if c.hook == hook and c.place[0] in met]
        return sorted(found, key=lambda chain: chain.priority)


def parse_listing(text: str, *, has_elements: bool = True) -> Listing:
    """Return the ruleset in ``text``; ``has_elements`` is False where ``nft -t`` printed it.

    Raises ValueError for what is no answer of nft's.
    """
    document = parse_json(text)
    if not isinstance(document, dict) or not isinstance(document.get("nftables"), list):
        msg = "not an answer of `nft -j`"
        raise ValueError(msg)  # noqa: TRY004 - as for text that is no JSON
    rules: dict[Place, list[ListedRule]] = {}
    heads: dict[Place, Mapping[str, Any]] = {}
    sets: dict[Place, Elements] = {}
    for kind, item in _items(document["nftables"]):
        if kind == "chain" and (place := _place(item, "name")):
            heads[place] = item
        elif kind == "rule" and (place := _place(item, "chain")):
            rules.setdefault(place, []).append(_rule(item))
        elif kind in {"set", "map"} and has_elements and (place := _place(item, "name")):
            found = item.get("elem", ())
            sets[place] = tuple(found) if isinstance(found, list) else ()
    chains = {
        place: ListedChain(
            place=place,
            hook=str(item.get("hook", "")),
            priority=item["prio"] if isinstance(item.get("prio"), int) else 0,
            policy=str(item.get("policy", "accept")),
            is_nat=item.get("type") == "nat",
            rules=tuple(rules.get(place, ())),
        )
        for place, item in heads.items()
    }
    return Listing(chains, sets)


def merged(foreign: Listing, own: Listing) -> Listing:
    """Return one ruleset of two; what is in ``own`` is taken from there."""
    return Listing({**foreign.chains, **own.chains}, {**foreign.sets, **own.sets})


def holds(element: Any, value: Any) -> bool | None:
    """Return whether an element of a set, or what stands right in a match, covers ``value``.

    None where that cannot be told. A tuple is a concatenation.
    """
    if isinstance(value, tuple):
        return _concatenation_holds(element, value)
    if isinstance(element, dict):
        if "elem" in element and isinstance(element["elem"], dict):  # with a timeout or comment
            return holds(element["elem"].get("val"), value)
        if "prefix" in element:
            return _in_prefix(element["prefix"], value)
        if "range" in element:
            return _in_range(element["range"], value)
        return None
    if isinstance(value, IPAddress):
        try:
            return bool(ip_address(str(element)) == value)
        except ValueError:
            return None
    if isinstance(value, str) and isinstance(element, str) and element.endswith("*"):
        return value.startswith(element[:-1])
    if isinstance(element, str) != isinstance(value, str):
        return None  # a name for a number, or a number for a name
    return bool(element == value)


def _concatenation_holds(element: Any, values: tuple[Any, ...]) -> bool | None:
    if isinstance(element, dict) and isinstance(element.get("elem"), dict):
        element = element["elem"].get("val")
    parts = element.get("concat") if isinstance(element, dict) else None
    if not isinstance(parts, list) or len(parts) != len(values):
        return None
    answers = [holds(part, value) for part, value in zip(parts, values, strict=True)]
    return False if False in answers else None if None in answers else True


def spelled_expression(expression: Any) -> str:
    """Return one expression in words close to nft's own."""
    if not isinstance(expression, dict) or not expression:
        return str(expression)
    kind, body = next(iter(expression.items()))
    if kind == "match" and isinstance(body, dict):
        sign = "" if body.get("op") in {"==", "in"} else f"{body.get('op')} "
        return f"{_spelled(body.get('left'))} {sign}{_spelled(body.get('right'))}"
    if kind in {"goto", "jump"} and isinstance(body, dict):
        return f"{kind} {body.get('target')}"
    if kind == "reject" and isinstance(body, dict):
        return " ".join(["reject with", *(str(body[k]) for k in ("type", "expr") if k in body)])
    if kind == "masquerade" and isinstance(body, dict):
        port = f" to :{_spelled(body['port'])}" if "port" in body else ""
        return f"masquerade{port}" + (f" {_spelled(body['flags'])}" if "flags" in body else "")
    if kind == "vmap" and isinstance(body, dict):
        return f"{_spelled(body.get('key'))} vmap {_spelled(body.get('data'))}"
    if kind == "xt":
        return f"xt {body.get('name')}" if isinstance(body, dict) else "xt"
    return kind if body is None else f"{kind} {_spelled(body)}"


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return " . ".join(_spelled(each) for each in value)
    if not isinstance(value, dict) or not value:
        return (
            {True: "exists", False: "missing"}.get(value, str(value))
            if (isinstance(value, bool))
            else str(value)
        )
    kind, body = next(iter(value.items()))
    if kind == "concat" and isinstance(body, list):
        return _spelled(body)
    if kind == "set" and isinstance(body, list):
        return "{ " + ", ".join(_spelled(each) for each in body) + " }"
    if kind == "prefix" and isinstance(body, dict):
        return f"{body.get('addr')}/{body.get('len')}"
    if kind == "range" and isinstance(body, list):
        return "-".join(map(str, body))
    if kind == "meta" and isinstance(body, dict):
        return str(body.get("key"))
    if kind == "payload" and isinstance(body, dict):
        if "protocol" in body:
            return f"{body['protocol']} {body.get('field')}"
        return f"@{body.get('base')},{body.get('offset')},{body.get('len')}"
    if kind == "fib" and isinstance(body, dict):
        flags = body.get("flags", [])
        return f"fib {' . '.join(flags) if isinstance(flags, list) else flags} {body.get('result')}"
    if kind == "ct" and isinstance(body, dict):
        return f"ct {body.get('key')}"
    return str(value)


def _items(listed: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in listed:
        if isinstance(item, dict):
            for kind, body in item.items():
                if isinstance(body, dict):
                    yield kind, body


def _place(item: Mapping[str, Any], name: str) -> Place | None:
    place = (item.get("family"), item.get("table"), item.get(name))
    if all(isinstance(part, str) for part in place):
        return (str(place[0]), str(place[1]), str(place[2]))
    return None


def _rule(item: Mapping[str, Any]) -> ListedRule:
    handle, expressions = item.get("handle"), item.get("expr")
    return ListedRule(
        handle if isinstance(handle, int) else 0,
        tuple(expressions) if isinstance(expressions, list) else ({"unread": None},),
        str(item.get("comment", "")),
    )


def _in_prefix(body: Any, value: Any) -> bool | None:
    if not isinstance(body, dict) or not isinstance(value, IPAddress):
        return None
    try:
        return value in ip_network(f"{body.get('addr')}/{body.get('len')}", strict=False)
    except ValueError:
        return None


def _in_range(body: Any, value: Any) -> bool | None:
    if not isinstance(body, list) or len(body) != 2:
        return None
    low, high = body
    if isinstance(value, IPAddress):
        try:
            first, last = ip_address(str(low)), ip_address(str(high))
        except ValueError:
            return None
        return first.version == value.version and int(first) <= int(value) <= int(last)
    if isinstance(value, int) and isinstance(low, int) and isinstance(high, int):
        return low <= value <= high
    return None
