"""Rules of nftables, as ``nft --json`` lists them, for one packet (libnftables-json(5))."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Final, TypeAlias

from overlay.cli.doctor.walk import Action, Packet, Rule
from overlay.model.address import Family, IPAddress

Expression: TypeAlias = Mapping[str, Any]

_VERDICTS: Final = {
    "accept": Action.ACCEPT,
    "drop": Action.DROP,
    "reject": Action.DROP,
    "return": Action.RETURN,
    "jump": Action.JUMP,
    "goto": Action.GOTO,
}
_FAMILY: Final = {"ip": Family.IPV4, "ip6": Family.IPV6}
_NFPROTO: Final = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}


def rules_for(
    packet: Packet, chains: Mapping[str, Sequence[Sequence[Expression]]]
) -> dict[str, list[Rule]]:
    """Return the rules of a table as they are for ``packet``, by chain."""
    return {
        name: [_rule(packet, expressions) for expressions in rules]
        for name, rules in chains.items()
    }


def _rule(packet: Packet, expressions: Sequence[Expression]) -> Rule:
    takes: bool | None = True
    for expression in expressions:
        for kind, body in expression.items():
            if kind in _VERDICTS:
                target = str(body.get("target", "")) if isinstance(body, dict) else ""
                return Rule(takes, _VERDICTS[kind], target, f"rule {_shown(expressions)}")
            answer = _holds(packet, body) if kind == "match" else _passes(kind)
            if answer is False:
                return Rule(takes=False, action=Action.NOTHING)
            takes = None if answer is None else takes
    return Rule(takes, Action.NOTHING)


def _passes(kind: str) -> bool | None:
    """Return whether a statement lets a packet on to the next; limits and sets may not."""
    return True if kind in {"counter", "log", "comment", "mangle", "notrack"} else None


def _holds(packet: Packet, match: Any) -> bool | None:
    if not isinstance(match, dict):
        return None
    right, operator = match.get("right"), match.get("op")
    value = _value(packet, match.get("left"))
    if value is _ELSE:
        return operator == "!="
    if value is None or operator not in {"==", "!=", "in"}:
        return None
    found = _within(value, right)
    return not found if operator == "!=" and found is not None else found


_ELSE: Final = object()  # a field that packets of this kind do not have


def _value(packet: Packet, left: Any) -> Any:
    """Return the packet's value of a field; None where it is not known."""
    if not isinstance(left, dict):
        return None
    payload, meta, conntrack = left.get("payload"), left.get("meta"), left.get("ct")
    if isinstance(payload, dict):
        return _payload(packet, str(payload.get("protocol")), str(payload.get("field")))
    if isinstance(meta, dict):
        return {
            "iifname": packet.iif or None,
            "iif": packet.iif or None,
            "oifname": packet.oif or None,
            "oif": packet.oif or None,
            "l4proto": "udp",
            "nfproto": _NFPROTO[packet.family],
        }.get(str(meta.get("key")))
    if isinstance(conntrack, dict) and conntrack.get("key") == "state":
        return "new"
    return None


def _payload(packet: Packet, protocol: str, field: str) -> Any:
    if protocol in _FAMILY:
        if _FAMILY[protocol] is not packet.family:
            return _ELSE
        known = {"saddr": packet.source, "daddr": packet.destination}
        return "udp" if field == "protocol" else known.get(field)
    if protocol in {"udp", "th"}:
        return packet.port if field == "dport" else None
    return _ELSE if protocol in {"tcp", "icmp", "icmpv6", "sctp", "dccp"} else None


def _within(value: Any, right: Any) -> bool | None:
    if isinstance(right, list):
        answers = [_within(value, each) for each in right]
        return True if True in answers else (None if None in answers else False)
    if isinstance(right, dict):
        if "set" in right:
            return _within(value, right["set"])
        if "range" in right and isinstance(right["range"], list):
            return _between(value, *right["range"])
        if "prefix" in right and isinstance(right["prefix"], dict):
            prefix = right["prefix"]
            return _in_network(value, f"{prefix.get('addr')}/{prefix.get('len')}")
        return None
    if isinstance(right, str) and right.startswith("@"):
        return None  # a named set
    if isinstance(value, str) and isinstance(right, str) and right.endswith("*"):
        return value.startswith(right[:-1])
    if isinstance(value, int):
        return bool(value == right) if isinstance(right, int) else None
    if isinstance(value, str):
        return bool(value == right)
    return _in_network(value, str(right))


def _between(value: Any, low: Any, high: Any) -> bool | None:
    if isinstance(value, int):
        return bool(low <= value <= high) if isinstance(low, int) else None
    try:
        first, last = ip_address(str(low)), ip_address(str(high))
    except ValueError:
        return None
    if isinstance(value, str) or first.version != value.version:
        return None
    return int(first) <= int(value) <= int(last)


def _in_network(value: IPAddress, text: str) -> bool | None:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    return bool(value.version == network.version and value in network)


def _shown(expressions: Sequence[Expression]) -> str:
    """Return what a rule looks at and does, in short."""
    words = [
        f"{_field(body.get('left'))} {body.get('right')}"
        if isinstance(body, dict) and kind == "match"
        else kind
        for expression in expressions
        for kind, body in expression.items()
        if kind != "counter"
    ]
    return f"`{' '.join(words)}`"


def _field(left: Any) -> str:
    for inner in left.values() if isinstance(left, dict) else ():
        if isinstance(inner, dict):
            return " ".join(str(v) for k, v in inner.items() if k in {"protocol", "field", "key"})
    return "?"
