"""What a ruleset does to one packet, as far as its rules can be read.

A match is true, false or unknown. A rule that matches perhaps is passed over
and counted: it may decide otherwise. Nothing here is a guess.
Semantics: nft(8), "verdict statements"; base chains of a hook run by priority,
``accept`` ends one chain alone, ``drop`` and ``reject`` end all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from overlay.model.address import Family, IPAddress, family_of
from overlay.policy.listing import Elements, ListedChain, ListedRule, Listing, Place, holds
from overlay.policy.ruleset import TABLE

Outcome: TypeAlias = Literal["accept", "drop", "reject", "masquerade", "rewrite"]

_IP: Final = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_DEEPEST: Final = 16  # NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h
_NUMBER: Final = {
    "tcp": 6, "udp": 17, "icmp": 1, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132,
}  # fmt: skip
# What neither matches nor decides.
_SILENT: Final = frozenset({"counter", "log", "comment", "mangle", "notrack", "flow"})
_REWRITES: Final = frozenset({"snat", "dnat", "redirect", "queue", "tproxy"})


@dataclass(frozen=True, slots=True)
class Packet:
    """What rules look at. A port is None where it is not known, or there is none.

    ``source_device`` is the device that the node's route to the source leads
    to, None where there is no such route; ``vni`` that of a tunnel packet.
    """

    source: IPAddress
    destination: IPAddress
    protocol: str = "icmp"  # tcp | udp | icmp (ICMPv6 with IPv6)
    source_port: int | None = None
    port: int | None = None
    iif: str = ""
    oif: str = ""
    source_device: str | None = None
    vni: int | None = None
    is_answer: bool = False

    @property
    def family(self) -> Family:
        """Return the packet's address family."""
        return family_of(self.destination)

    @property
    def protocol_number(self) -> int:
        """Return the number in the IP header."""
        if self.protocol == "icmp":
            return 1 if self.family is Family.IPV4 else 58
        return _NUMBER[self.protocol]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one base chain does. ``rule`` is None where its policy decides.

    ``where`` is the chain of the rule. ``unread`` are rules before it that
    may decide otherwise.
    """

    chain: ListedChain
    outcome: Outcome
    rule: ListedRule | None = None
    where: Place = ("", "", "")
    unread: tuple[ListedRule, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Return whether the chain is one of ours."""
        return " ".join(self.chain.place[:2]) == TABLE

    @property
    def stops(self) -> bool:
        """Return whether the packet ends here."""
        return self.outcome in {"drop", "reject"}


def verdicts(listing: Listing, hook: str, packet: Packet) -> tuple[Verdict, ...]:
    """Return what each base chain of ``hook`` does, in order, up to the one that stops it."""
    found: list[Verdict] = []
    for chain in listing.at(hook, _IP[packet.family]):
        verdict = _Evaluation(listing, chain, packet).verdict()
        found.append(verdict)
        if verdict.stops:
            break
    return tuple(found)


@dataclass(slots=True)
class _Evaluation:
    """One packet in one base chain."""

    listing: Listing
    chain: ListedChain
    packet: Packet
    unread: list[ListedRule] = field(default_factory=list)

    def verdict(self) -> Verdict:
        decided = self._run(self.chain, 0)
        if decided is None:
            policy: Outcome = "drop" if self.chain.policy == "drop" else "accept"
            return Verdict(self.chain, policy, unread=tuple(self.unread))
        outcome, rule, where = decided
        return Verdict(self.chain, outcome, rule, where, tuple(self.unread))

    def _run(self, chain: ListedChain, depth: int) -> tuple[Outcome, ListedRule, Place] | None:
        """Return what the rules of ``chain`` decide; None where they come to their end."""
        for rule in chain.rules:
            matches, action, body = self._read(rule)
            if matches is False:
                continue
            if action in {"jump", "goto"}:
                target = self._target(chain, body)
                if matches is None or target is None or depth == _DEEPEST:
                    self.unread.append(rule)
                    continue
                decided = self._run(target, depth + 1)
                if decided is not None or action == "goto":
                    return decided
            elif matches is None:
                if action:
                    self.unread.append(rule)
            elif action == "return":
                return None
            elif action in {"accept", "drop", "reject", "masquerade", "rewrite"}:
                return action, rule, chain.place  # type: ignore[return-value]  # those five
            elif action:
                self.unread.append(rule)
        return None

    def _target(self, chain: ListedChain, body: Any) -> ListedChain | None:
        name = body.get("target") if isinstance(body, dict) else None
        return self.listing.chains.get((*chain.place[:2], str(name)))

    def _read(self, rule: ListedRule) -> tuple[bool | None, str, Any]:
        """Return whether the rule matches, and what it does then; "" for nothing."""
        sure: bool | None = True
        for expression in rule.expressions:
            if not isinstance(expression, dict) or len(expression) != 1:
                sure = None
                continue
            ((kind, body),) = expression.items()
            if kind == "match":
                matches = self._matches(body)
                if matches is False:
                    return False, "", None
                sure = sure and matches
            elif kind in {"accept", "drop", "return", "jump", "goto", "reject", "masquerade"}:
                return sure, kind, body
            elif kind in _REWRITES:
                return sure, "rewrite", body
            elif kind == "xt":
                name = body.get("name") if isinstance(body, dict) else None
                if name != "comment":
                    sure = None
                    if isinstance(body, dict) and body.get("type") == "target":
                        return None, "unread", body
            elif kind not in _SILENT:
                return None, "unread", body
        return sure, "", None

    def _matches(self, body: Any) -> bool | None:
        if not isinstance(body, dict):
            return None
        known, value = self._value(body.get("left"))
        if not known:
            return None
        if value is None:  # of the other family, or of another protocol: nft adds that match
            return False
        candidates = self._candidates(body.get("right"))
        if candidates is None:
            return None
        answers = [holds(each, value) for each in candidates]
        if body.get("op") in {"==", "in"}:
            return True if True in answers else None if None in answers else False
        if body.get("op") == "!=":
            return False if True in answers else None if None in answers else True
        return None

    def _candidates(self, right: Any) -> Elements | None:
        if isinstance(right, str) and right.startswith("@"):
            return self.listing.sets.get((*self.chain.place[:2], right[1:]))
        if isinstance(right, dict) and isinstance(right.get("set"), list):
            return tuple(right["set"])
        if isinstance(right, list):
            return tuple(right)
        return (right,)

    def _value(self, left: Any) -> tuple[bool, Any]:
        """Return whether it is known what stands left in a match, and that; None for no such."""
        if not isinstance(left, dict) or len(left) != 1:
            return False, None
        ((kind, body),) = left.items()
        if not isinstance(body, dict):
            return False, None
        if kind == "meta":
            return self._meta(body.get("key"))
        if kind == "payload":
            return self._payload(body)
        packet = self.packet
        if kind == "ct" and body.get("key") == "state":
            return True, "established" if packet.is_answer else "new"
        if kind == "fib" and body.get("result") == "oif" and body.get("flags") == ["saddr", "iif"]:
            return True, packet.source_device == packet.iif
        return False, None

    def _meta(self, key: Any) -> tuple[bool, Any]:
        packet = self.packet
        names = {"iifname": packet.iif, "iif": packet.iif, "oifname": packet.oif,
                 "oif": packet.oif}  # fmt: skip
        if key in names:
            return True, names[str(key)]
        if key == "l4proto":
            spelled = "ipv6-icmp" if packet.protocol_number == 58 else packet.protocol
            return True, spelled
        if key == "nfproto":
            return True, {"ip": "ipv4", "ip6": "ipv6"}[_IP[packet.family]]
        return False, None

    def _payload(self, body: dict[str, Any]) -> tuple[bool, Any]:
        packet = self.packet
        protocol, name = body.get("protocol"), body.get("field")
        if protocol in {"ip", "ip6"}:
            if protocol != _IP[packet.family]:
                return True, None
            addresses = {"saddr": packet.source, "daddr": packet.destination}
            if name in addresses:
                return True, addresses[str(name)]
            if name in {"protocol", "nexthdr"}:
                return True, packet.protocol
            return False, None
        if protocol in {"tcp", "udp"}:
            if protocol != packet.protocol:
                return True, None
            ports = {"sport": packet.source_port, "dport": packet.port}
            return ports.get(str(name)) is not None, ports.get(str(name))
        if (body.get("base"), body.get("offset"), body.get("len")) == ("th", 96, 24):
            return packet.vni is not None, packet.vni
        return False, None


def unread_rules(found: tuple[Verdict, ...]) -> Iterator[ListedRule]:
    """Yield the rules that may decide otherwise."""
    for verdict in found:
        yield from verdict.unread
