"""Rules as ``iptables -S`` prints them, in nft's terms (iptables-extensions(8)).

So one evaluation (``overlay.policy.verdict``) serves both. What has no such
form becomes a match or a target that is not read, and a rule keeps its text.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from overlay.model.address import Family
from overlay.policy.listing import ListedChain, ListedRule, Listing, Place
from overlay.policy.packet import IP

_HOOKS: Final = {"INPUT": "input", "FORWARD": "forward", "OUTPUT": "output"}
_ENDS: Final = frozenset({"ACCEPT", "DROP", "RETURN", "REJECT"})
# Words that say nothing of the packet, with how many follow them.
_SILENT: Final = {"-m": 1, "--comment": 1, "--reject-with": 1, "--log-prefix": 1, "--log-level": 1}
_PORTS: Final = {"--dport": "dport", "--dports": "dport", "--sport": "sport", "--sports": "sport"}
# The route type of the destination (xt_addrtype), which nft asks the FIB for.
_DESTINATION_TYPE: Final = {"fib": {"result": "type", "flags": ["daddr"]}}
_UNREAD: Final[Mapping[str, Any]] = {"xt": {"type": "match", "name": None}}


def iptables_listing(
    family: Family, chains: Mapping[str, Sequence[str]], table: str = "filter"
) -> Listing:
    """Return the table ``filter`` whose lines ``chains`` has, by chain, under the name ``table``.

    The program's own name tells a legacy table from that of nft's.
    """
    found: dict[Place, ListedChain] = {}
    for name, lines in chains.items():
        place = (IP[family], table, name)
        rules = tuple(_rule(family, line, chains) for line in lines if line.startswith("-A "))
        policy = "drop" if f"-P {name} DROP" in lines else "accept"
        found[place] = ListedChain(place, _HOOKS.get(name, ""), policy=policy, rules=rules)
    return Listing(found)


def _rule(family: Family, line: str, chains: Mapping[str, Sequence[str]]) -> ListedRule:
    words = shlex.split(line)[2:]
    return ListedRule(0, tuple(_expressions(family, words, chains)), text=line)


def _expressions(
    family: Family, words: list[str], chains: Mapping[str, Sequence[str]]
) -> Iterator[Mapping[str, Any]]:
    end: Mapping[str, Any] | None = None  # -m may follow a target
    while words:
        is_negated = words[0] == "!" and len(words) > 1
        option, *words = words[1:] if is_negated else words
        if option in {"-j", "-g"} and words:
            target, *words = words
            end = _end(target, chains, is_goto=option == "-g")
        elif option in _SILENT:
            words = words[_SILENT[option] :]
        else:
            value = words.pop(0) if words and not words[0].startswith("-") else ""
            yield _match(family, option, value, "!=" if is_negated else "==")
    if end is not None:
        yield end


def _end(target: str, chains: Mapping[str, Sequence[str]], *, is_goto: bool) -> Mapping[str, Any]:
    if target in chains:
        return {"goto" if is_goto else "jump": {"target": target}}
    if target in _ENDS:
        return {target.lower(): None}
    return {"xt": {"type": "target", "name": target}}


def _match(family: Family, option: str, value: str, sign: str) -> Mapping[str, Any]:
    left: Mapping[str, Any]
    right: Any
    if option in {"-p", "--protocol"}:
        if value in {"all", "0"}:
            return {"comment": None}
        left, right = {"meta": {"key": "l4proto"}}, _PROTOCOLS.get(value, value)
    elif option in {"-i", "-o"}:
        left = {"meta": {"key": "iifname" if option == "-i" else "oifname"}}
        right = f"{value[:-1]}*" if value.endswith("+") else value
    elif option in {"-s", "-d"}:
        field = "saddr" if option == "-s" else "daddr"
        left = {"payload": {"protocol": IP[family], "field": field}}
        address, _, length = value.partition("/")
        right = {"prefix": {"addr": address, "len": length or family.bits}}
    elif option in _PORTS:
        left = {"payload": {"protocol": "th", "field": _PORTS[option]}}
        right = {"set": [_ports(part) for part in value.split(",")]}
    elif option in {"--ctstate", "--state"}:
        left, right = {"ct": {"key": "state"}}, value.lower().split(",")
    elif option == "--rt-type":
        left, right = {"exthdr": {"name": "rt", "field": "type"}}, value
    elif option == "--dst-type":
        left, right = _DESTINATION_TYPE, value.lower().split(",")
    else:
        return _UNREAD
    return {"match": {"op": sign, "left": left, "right": right}}


_PROTOCOLS: Final = {"6": "tcp", "17": "udp", "1": "icmp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp"}


def _ports(text: str) -> Any:
    low, _, high = text.partition(":")
    if not low.isdecimal() or (high and not high.isdecimal()):
        return text
    return {"range": [int(low), int(high)]} if high else int(low)
