"""Classes of pods as chains, and the hooks that send packets to them.

A packet passes at most two chains: that of the pod it comes from, then that of
the pod it goes to. What a chain allows returns to the hook, so that both ends
must allow it. Counting and logging come after the last rule that allows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from overlay.model.cluster_policy import Action
from overlay.policy.network.classes import Direction, PodClass, Step, Term, digest
from overlay.policy.network.match import Match
from overlay.policy.network.table import Denial, PolicyMap, PolicySet

UNKNOWN: Final = Denial("unknown", None)
# After the guard of the table ``inet overlay``, before the host's own filter (0).
_PRIORITY: Final = "filter - 9"
ESTABLISHED: Final = "ct state established,related accept"
_ICMPV6: Final = (
    "packet-too-big",
    "mld-listener-query",
    "mld-listener-report",
    "mld-listener-done",
    "nd-router-solicit",
    "nd-router-advert",
    "nd-neighbor-solicit",
    "nd-neighbor-advert",
    "mld2-listener-report",
)
_VERSIONS: Final = (4, 6)
_IP: Final = {4: "ip", 6: "ip6"}
_ADDRESS: Final = {4: "ipv4_addr", 6: "ipv6_addr"}


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How refused packets are logged: NFLOG ``group``, so many bytes of each, so many a second.

    The rate is for each class of pods by itself: a busy one hides no other.
    """

    group: int
    snaplen: int = 128  # bytes
    rate: int = 5  # packets a second
    burst: int = 10  # packets


@dataclass(frozen=True, slots=True)
class RenderedClass:
    """A class in the kernel: its chains by name, and what its counters stand for."""

    entry: str
    chains: Mapping[str, tuple[str, ...]]
    denials: tuple[Denial, ...]
    matches: tuple[Match, ...]


def render_class(
    each: PodClass,
    match: Callable[[Sequence[Term], Direction], Match],
    log: LogOptions | None,
) -> RenderedClass:
    """Return the chains of a class; ``match`` gives what terms match."""
    entry = f"ov_c_{each.ident}"
    chains: dict[str, tuple[str, ...]] = {}
    denials: list[Denial] = []
    matches: list[Match] = []

    def steps(listed: Sequence[Step], passing: str, *, audited: bool) -> Iterator[str]:
        for step in listed:
            found = match([step.term], each.direction)
            matches.append(found)
            if step.action is Action.ACCEPT:
                yield from found.lines("return")
            elif step.action is Action.PASS:
                yield from found.lines(passing)
            else:
                denial = Denial(
                    digest("cluster", step.policy, each.direction.value, audited),
                    each.direction,
                    (step.policy,),
                    audited,
                )
                denials.append(denial)
                chains[f"ov_d_{denial.ident}"] = tuple(refuse(denial, log))
                yield from found.lines(f"goto ov_d_{denial.ident}")

    if each.policies:
        found = match(each.allowed, each.direction)
        matches.append(found)
        denial = Denial(
            each.ident, each.direction, tuple(map("/".join, each.policies)), each.audited
        )
        denials.append(denial)
        last = [*found.lines("return")]
        if not found.everything:
            last += refuse(denial, log)
    else:
        last = list(steps(each.baseline, "return", audited=each.audited))
    if each.admin:
        after = f"ov_n_{each.ident}"
        chains[after] = tuple(last)
        # Who may annotate a namespace may not overrule the administrator.
        last = [*steps(each.admin, f"goto {after}", audited=False), f"goto {after}"]
    chains[entry] = tuple(last)
    return RenderedClass(entry, chains, tuple(dict.fromkeys(denials)), tuple(matches))


def refuse(denial: Denial, log: LogOptions | None) -> Iterator[str]:
    """Yield the rules that count and log what is refused, and drop it unless it is audited."""
    if log is not None:
        yield (
            f"limit rate {log.rate}/second burst {log.burst} packets "
            f'log prefix "{denial.log_prefix}" group {log.group} snaplen {log.snaplen}'
        )
    verdict = "return" if denial.audited else "drop"
    # As nft lists it, quotes and all: see ``listed``.
    yield f'counter name "{denial.counter}" {verdict}'


def hooks() -> dict[str, tuple[str, ...]]:
    """Return the chains with hooks: what passes a node, and what pods send to it.

    What the node itself sends passes: it reaches its pods always. IPVS sends
    pods' packets to pods of its choice from here, with their own addresses.
    Neighbor discovery, group membership and what path MTU discovery needs pass
    even where conntrack knows nothing of it.
    """
    always = [
        ESTABLISHED,
        f"icmpv6 type {{ {', '.join(_ICMPV6)} }} accept",
        "icmp type destination-unreachable icmp code frag-needed accept",
    ]
    itself = [f"{_IP[v]} saddr . {_IP[v]} daddr @ov_self{v} accept" for v in _VERSIONS]
    source = [f"{_IP[v]} saddr vmap @ov_from{v}" for v in _VERSIONS]
    target = [f"{_IP[v]} daddr vmap @ov_to{v}" for v in _VERSIONS]

    def hook(name: str) -> str:
        return f"type filter hook {name} priority {_PRIORITY}; policy accept;"

    return {
        "ov_forward": (hook("forward"), *always, *itself, *source, *target),
        "ov_input": (hook("input"), *always, *source),
        "ov_output": (hook("output"), *always, "fib saddr type local accept", *target),
    }


def verdict_maps(
    chains: Mapping[tuple[Direction, int], Mapping[str, str]],
) -> dict[str, PolicyMap]:
    """Return the maps from addresses to chains, for each direction and IP version."""
    words = {Direction.EGRESS: "from", Direction.INGRESS: "to"}
    return {
        f"ov_{words[direction]}{version}": PolicyMap(
            f"ov_{words[direction]}{version}", _ADDRESS[version], elements
        )
        for (direction, version), elements in chains.items()
    }


def self_sets(pairs: Mapping[int, frozenset[str]]) -> dict[str, PolicySet]:
    """Return the sets by which a pod reaches itself, through a Service for example."""
    return {
        f"ov_self{v}": PolicySet(f"ov_self{v}", f"{_ADDRESS[v]} . {_ADDRESS[v]}", pairs[v])
        for v in _VERSIONS
    }
