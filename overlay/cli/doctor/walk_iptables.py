"""Rules of iptables, as ``iptables -S`` prints them, for one packet (iptables-extensions(8))."""

import shlex
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Final

from overlay.cli.doctor.walk import Action, Packet, Rule
from overlay.model.address import IPAddress

_TARGETS: Final = {
    "ACCEPT": Action.ACCEPT,
    "DROP": Action.DROP,
    "REJECT": Action.DROP,
    "RETURN": Action.RETURN,
}
_GO_ON: Final = frozenset({"LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "AUDIT", "CT", "TCPMSS"})
# Words that say nothing of the packet, with how many follow them.
_SILENT: Final = {"-m": 1, "--comment": 1, "--reject-with": 1, "--log-prefix": 1, "--log-level": 1}


def rules_for(packet: Packet, chains: Mapping[str, Sequence[str]]) -> dict[str, list[Rule]]:
    """Return the rules of a table as they are for ``packet``, by chain."""
    return {
        name: [_rule(packet, line, chains) for line in lines if line.startswith("-A ")]
        for name, lines in chains.items()
    }


def drops_by_policy(chains: Mapping[str, Sequence[str]], chain: str) -> bool:
    """Return whether the built-in ``chain`` drops what no rule decides."""
    return f"-P {chain} DROP" in chains.get(chain, ())


def _rule(packet: Packet, line: str, chains: Mapping[str, Sequence[str]]) -> Rule:
    words = shlex.split(line)[2:]
    takes: bool | None = True
    target, action = "", Action.NOTHING
    while words:
        negated = words[0] == "!"
        option, *words = words[1:] if negated else words
        if option in {"-j", "-g"} and words:
            target, *words = words
            action = _action(target, chains, is_goto=option == "-g")
            continue
        if option in _SILENT:
            words = words[_SILENT[option] :]
            continue
        value = words.pop(0) if words and not words[0].startswith("-") else ""
        answer = _holds(packet, option, value)
        if answer is not None and negated:
            answer = not answer
        if answer is False:
            return Rule(takes=False, action=Action.NOTHING)
        takes = None if answer is None else takes
    if target and target not in {*chains, *_TARGETS, *_GO_ON}:
        takes = None  # nobody here knows what it does
    return Rule(takes, action, target, f"rule `{line}`")


def _action(target: str, chains: Mapping[str, Sequence[str]], *, is_goto: bool) -> Action:
    if target in chains:
        return Action.GOTO if is_goto else Action.JUMP
    return _TARGETS.get(target, Action.NOTHING if target in _GO_ON else Action.DROP)


def _holds(packet: Packet, option: str, value: str) -> bool | None:
    if option in {"-p", "--protocol"}:
        return value in {"udp", "17", "all"}
    if option in {"-i", "-o"}:
        link = packet.iif if option == "-i" else packet.oif
        if not link:
            return None
        return link.startswith(value[:-1]) if value.endswith("+") else link == value
    if option in {"-s", "-d"}:
        return _in_network(packet.source if option == "-s" else packet.destination, value)
    if option in {"--dport", "--dports"}:
        return any(_in_ports(packet.port, part) for part in value.split(","))
    if option in {"--ctstate", "--state"}:
        return "NEW" in value.split(",")
    return None


def _in_ports(port: int, text: str) -> bool:
    low, _, high = text.partition(":")
    return low.isdecimal() and int(low) <= port <= int(high or low)


def _in_network(address: IPAddress | None, text: str) -> bool | None:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    return None if address is None else address in network
