"""What a ruleset does to one packet, as far as its rules can be read.

A match is true, false or unknown. A rule that matches perhaps is passed over
and counted: it may decide otherwise. Nothing here is a guess.
Semantics: nft(8), "verdict statements"; base chains of a hook run by priority,
``accept`` ends one chain alone, ``drop`` and ``reject`` end all.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from overlay.policy.listing import Elements, ListedChain, ListedRule, Listing, Place, holds
from overlay.policy.network.table import POLICY_TABLE
from overlay.policy.packet import IP, Packet
from overlay.policy.ruleset import TABLE

__all__ = ["OWN_TABLES", "Outcome", "Packet", "Verdict", "is_own", "verdict_of", "verdicts"]

Outcome: TypeAlias = Literal["accept", "drop", "reject", "masquerade", "rewrite"]

OWN_TABLES: Final = (TABLE, POLICY_TABLE)
_DEEPEST: Final = 16  # NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables.h
# What neither matches nor decides, and what may match: a rate, a count, room in a set.
_SILENT: Final = frozenset({"counter", "log", "comment", "mangle", "notrack", "flow"})
_DOUBTFUL: Final = frozenset({"limit", "quota", "ct count", "set", "map", "meter", "last"})
_REWRITES: Final = frozenset({"snat", "dnat", "redirect", "queue", "tproxy"})
_ENDS: Final = frozenset({"accept", "drop", "return", "jump", "goto", "reject", "masquerade"})
# Targets of iptables that nft lists by name (iptables-extensions(8)); others are not read.
_TARGETS: Final = {
    "REJECT": "reject",
    "MASQUERADE": "masquerade",
    **dict.fromkeys(("SNAT", "DNAT", "REDIRECT", "NETMAP"), "rewrite"),
    **dict.fromkeys(("LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "AUDIT", "CT", "TCPMSS"), ""),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one base chain does. ``rule`` is None where its policy decides.

    ``where`` is the chain of the rule. ``unread`` are rules before it that
    may decide otherwise, ``against`` the first of them that would stop what
    passes, or let pass what is stopped.
    """

    chain: ListedChain
    outcome: Outcome
    rule: ListedRule | None = None
    where: Place = ("", "", "")
    unread: tuple[ListedRule, ...] = ()
    against: ListedRule | None = None

    @property
    def is_ours(self) -> bool:
        """Return whether the chain is one of ours."""
        return is_own(self.chain.place)

    @property
    def is_network_policy(self) -> bool:
        """Return whether the chain is one that network policies were compiled to."""
        return " ".join(self.chain.place[:2]) == POLICY_TABLE

    @property
    def stops(self) -> bool:
        """Return whether the packet ends here."""
        return _is_stop(self.outcome)


def is_own(place: Place) -> bool:
    """Return whether a chain or set is in a table of ours."""
    return " ".join(place[:2]) in OWN_TABLES


def verdicts(listing: Listing, hook: str, packet: Packet) -> tuple[Verdict, ...]:
    """Return what each base chain of ``hook`` does, in order, up to the one that stops it."""
    found: list[Verdict] = []
    for chain in listing.at(hook, IP[packet.family]):
        verdict = verdict_of(listing, chain, packet)
        found.append(verdict)
        if verdict.stops:
            break
    return tuple(found)


def verdict_of(listing: Listing, chain: ListedChain, packet: Packet) -> Verdict:
    """Return what one base chain of ``listing`` does, whatever others do."""
    run = _Run(listing, packet)
    decided = run.through(chain, 0)
    policy: Outcome = "drop" if chain.policy == "drop" else "accept"
    outcome, rule, where = decided or (policy, None, ("", "", ""))
    stops = _is_stop(outcome)
    against = (rule for rule, action in run.doubts if _turns(action, stops=stops))
    unread = tuple({id(rule): rule for rule, _ in run.doubts}.values())
    return Verdict(chain, outcome, rule, where, unread, next(against, None))


def _is_stop(action: str) -> bool:
    return action in {"drop", "reject"}


def _turns(action: str, *, stops: bool) -> bool:
    """Return whether a doubtful rule might make the opposite of what is decided without it."""
    # A return may skip what decides; what is not read may do anything.
    return action in {"return", "unread"} or _is_stop(action) != stops


@dataclass(slots=True)
class _Run:
    """One packet on its way through one base chain; ``doubts`` are rules and what they may do."""

    listing: Listing
    packet: Packet
    doubts: list[tuple[ListedRule, str]] = field(default_factory=list)

    def through(self, chain: ListedChain, depth: int) -> tuple[Outcome, ListedRule, Place] | None:
        """Return what the rules of ``chain`` decide; None where they come to their end."""
        for rule in chain.rules:
            matches, action, body = self._read(chain, rule)
            if matches is False or not action:
                continue
            if action in {"jump", "goto"}:
                target = self._target(chain, body)
                if target is None or depth == _DEEPEST:
                    self.doubts.append((rule, "unread"))
                    continue
                before = len(self.doubts)
                decided = self.through(target, depth + 1)
                if matches is None:
                    # What is in doubt behind it is so because of this rule, too.
                    inner = [action for _, action in self.doubts[before:]]
                    inner += [decided[0]] if decided is not None else []
                    inner += ["return"] if action == "goto" else []
                    self.doubts[before:] = [(rule, action) for action in inner]
                elif decided is not None or action == "goto":
                    return decided
            elif matches is None or action == "unread":
                self.doubts.append((rule, action))
            elif action == "return":
                return None
            else:
                return action, rule, chain.place  # type: ignore[return-value]  # one of Outcome
        return None

    def _target(self, chain: ListedChain, body: Any) -> ListedChain | None:
        name = body.get("target") if isinstance(body, dict) else None
        return self.listing.chains.get((*chain.place[:2], str(name)))

    def _read(self, chain: ListedChain, rule: ListedRule) -> tuple[bool | None, str, Any]:
        """Return whether the rule matches, and what it does then; "" for nothing."""
        sure: bool | None = True
        for expression in rule.expressions:
            if not isinstance(expression, dict) or len(expression) != 1:
                sure = None
                continue
            ((kind, body),) = expression.items()
            if kind == "match":
                matches = self._matches(chain, body)
                if matches is False:
                    return False, "", None
                sure = sure and matches
            elif kind in _ENDS:
                return sure, kind, body
            elif kind in _REWRITES:
                return sure, "rewrite", body
            elif kind == "vmap":
                matches, action, body = self._mapped(chain, body)
                return (matches if sure else matches and None), action, body
            elif kind == "xt":
                name = body.get("name") if isinstance(body, dict) else None
                if isinstance(body, dict) and body.get("type") == "target":
                    return sure, _TARGETS.get(str(name), "unread"), body
                sure = sure if name == "comment" else None
            elif kind in _DOUBTFUL:
                sure = None
            elif kind not in _SILENT:
                return None, "unread", body
        return sure, "", None

    def _mapped(self, chain: ListedChain, body: Any) -> tuple[bool | None, str, Any]:
        """Return whether a verdict map has the packet, and what it does with it."""
        known, value = False, None
        if isinstance(body, dict):
            known, value = self.packet.value(body.get("key"))
        pairs = self._elements(chain, body.get("data")) if known else None
        if pairs is None:
            return None, "unread", body
        doubtful = False
        for pair in pairs if value is not None else ():
            key, found = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
            answer = holds(key, value)
            if answer and isinstance(found, dict) and len(found) == 1:
                ((action, inner),) = found.items()
                return True, action if action in _ENDS else "", inner
            doubtful = doubtful or answer is None
        return (None, "unread", body) if doubtful else (False, "", None)

    def _matches(self, chain: ListedChain, body: Any) -> bool | None:
        if not isinstance(body, dict):
            return None
        known, value = self.packet.value(body.get("left"))
        if not known:
            return None
        if value is None:  # of the other family, or of another protocol: nft adds that match
            return False
        candidates = self._elements(chain, body.get("right"))
        if candidates is None:
            return None
        answers = [holds(each, value) for each in candidates]
        if body.get("op") in {"==", "in"}:
            return True if True in answers else None if None in answers else False
        if body.get("op") == "!=":
            return False if True in answers else None if None in answers else True
        return None

    def _elements(self, chain: ListedChain, right: Any) -> Elements | None:
        """Return what stands right, one by one; None for a set whose elements are not known."""
        if isinstance(right, str) and right.startswith("@"):
            return self.listing.sets.get((*chain.place[:2], right[1:]))
        if isinstance(right, dict) and isinstance(right.get("set"), list):
            return tuple(right["set"])
        if isinstance(right, list):
            return tuple(right)
        return (right,)
