"""What becomes of a packet in chains of rules, as far as that can be told without sending it.

Rules of nftables and of iptables are brought into one form first (``walk_nft``,
``walk_iptables``). What a rule asks of a packet may be known to hold, known
not to, or unknown; so the answer has three values as well.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from overlay.model.address import Family, IPAddress

_DEEPEST: Final = 16  # jumps; the kernel refuses more (NFT_JUMP_STACK_SIZE)


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a UDP flow; an empty interface is unknown."""

    family: Family
    source: IPAddress | None
    destination: IPAddress | None
    port: int
    iif: str = ""
    oif: str = ""


class Action(enum.Enum):
    """What a rule does with a packet that it takes."""

    ACCEPT = "accept"
    DROP = "drop"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule for one packet. ``takes`` is None where it cannot be told."""

    takes: bool | None
    action: Action
    target: str = ""  # the chain to jump to
    text: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``is_dropped`` is None where it cannot be told; ``by`` is the rule or policy."""

    is_dropped: bool | None
    by: str = ""


def walk(chains: Mapping[str, Sequence[Rule]], chain: str, *, drops_by_policy: bool) -> Outcome:
    """Return what becomes of the packet that ``chains`` were made for, from base ``chain`` on."""
    doubts: list[Rule] = []
    rule = _walk(chains, chain, doubts, 0)
    if rule is not None and rule.action is not Action.RETURN:
        is_dropped, by = rule.action is Action.DROP, rule.text
    else:
        is_dropped, by = drops_by_policy, "the policy" if drops_by_policy else ""
    against = Action.ACCEPT if is_dropped else Action.DROP
    doubt = next((each for each in doubts if each.action is against), None)
    return Outcome(is_dropped, by) if doubt is None else Outcome(None, doubt.text)


def _walk(
    chains: Mapping[str, Sequence[Rule]], name: str, doubts: list[Rule], depth: int
) -> Rule | None:
    """Return the rule that decides, None where the chain ends without one; note doubtful ones."""
    for rule in chains.get(name, ()) if depth < _DEEPEST else ():
        if rule.takes is False or rule.action is Action.NOTHING:
            continue
        if rule.action in {Action.JUMP, Action.GOTO}:
            inner: list[Rule] = []
            found = _walk(chains, rule.target, inner, depth + 1)
            doubts += inner
            decided = found is not None and found.action is not Action.RETURN
            if rule.takes is None:
                if decided and found is not None:
                    doubts.append(found)
                continue
            if decided:
                return found
            if rule.action is Action.GOTO:
                return None
        elif rule.takes is None:
            doubts.append(rule)
        else:
            return rule
    return None
