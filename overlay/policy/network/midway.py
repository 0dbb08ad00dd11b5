"""What keeps a connection that was cut from coming back the other way round.

The kernel takes up a TCP connection in the middle where conntrack has no entry
of it (nf_conntrack_tcp_loose). A forbidden one whose entry was deleted would
come back by the answers of the pod: they look like a connection that the pod
begins, which its own rules may allow. A connection is begun by a SYN, so that
what a pod with ingress rules sends in the middle of none is dropped; the other
side's packets, which its rules are asked about, take an allowed one up again.
"""

from dataclasses import replace
from typing import Final

from overlay.policy.network.table import PolicyRuleset, PolicySet

CHAIN: Final = "ov_midway"
_HOOK: Final = "type filter hook forward priority filter - 9; policy accept;"
_VERSIONS: Final = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


def guarded(ruleset: PolicyRuleset) -> PolicyRuleset:
    """Return the table with that chain, and the sets of the pods that it is about."""
    sets = {
        f"ov_shut{version}": PolicySet(
            f"ov_shut{version}", kind, frozenset(ruleset.maps[f"ov_to{version}"].elements)
        )
        for version, (_, kind) in _VERSIONS.items()
        if f"ov_to{version}" in ruleset.maps
    }
    lines = [
        f"ct state new tcp flags != syn / fin,syn,rst,ack {word} saddr "
        f"@ov_shut{version} counter drop"
        for version, (word, _) in _VERSIONS.items()
        if f"ov_shut{version}" in sets
    ]
    return replace(
        ruleset, sets={**ruleset.sets, **sets}, base={**ruleset.base, CHAIN: (_HOOK, *lines)}
    )


def is_empty(ruleset: PolicyRuleset) -> bool:
    """Return whether no packet would be judged by it: no pod of this node is isolated."""
    return not any(verdicts.elements for verdicts in ruleset.maps.values())


def isolated(ruleset: PolicyRuleset) -> frozenset[str]:
    """Return the addresses of the pods that are isolated in any direction, as texts."""
    return frozenset(a for verdicts in ruleset.maps.values() for a in verdicts.elements)
