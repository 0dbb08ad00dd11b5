"""Faults of the second family, in a lab of nodes with both: found by the same eyes.

``explain`` and ``doctor`` have one code path for IPv4 and IPv6; these rows look
that what is named is what the second family has.
"""

from typing import Final

from overlay.lab.faults.fault import Fault

_WAY: Final = "explain {pod1_6} {pod2_6}"
_UNDO_RULE: Final = "sh -c 'ip -6 rule del priority 100 2>/dev/null || :'"

SECOND_FAMILY: Final[tuple[Fault, ...]] = (
    Fault(
        "IPv6: wrong FDB entry",
        ("bridge fdb replace {mac2_6} dev overlay-v6.1 dst 2001:db8:1::99 self permanent",),
        "n2 is at {public2_6}, as its lease says",
        asked=_WAY,
    ),
    Fault(
        "IPv6: missing neighbor",
        ("ip -6 neigh del {gateway2_6} dev overlay-v6.1",),
        "there is no neighbor entry for {gateway2_6}",
        asked=_WAY,
    ),
    Fault(
        "IPv6: route deleted",
        ("ip -6 route del {net2_6}",),
        "the route to {net2_6} of n2 is gone",
        asked=_WAY,
    ),
    Fault(
        "IPv6: longer route of somebody else",
        ("ip -6 route add {pod2_6}/128 dev eth0",),
        "goes before the route to {net2_6}",
        undo=("ip -6 route flush {pod2_6}/128",),
        asked=_WAY,
    ),
    Fault(
        "IPv6: rule that forbids",
        ("ip -6 rule add from {pod1_6} prohibit priority 100",),
        "rule 100 forbids it before the route to {net2_6} is looked at",
        undo=(_UNDO_RULE,),
        asked=_WAY,
    ),
    Fault(
        "IPv6: FORWARD drop",
        ("ip6tables -P FORWARD DROP",),
        "the policy of ip6 filter FORWARD drops it",
        undo=("ip6tables -P FORWARD ACCEPT",),
        asked=_WAY,
    ),
    Fault(
        "IPv6: forwarding switched off",
        ("sysctl -qw net.ipv6.conf.all.forwarding=0",),
        "this node does not forward packets",
        asked=_WAY,
    ),
    Fault(
        "IPv6: device down",
        ("ip link set overlay-v6.1 down",),
        "overlay-v6.1 is down, and its routes went with it",
        asked=_WAY,
    ),
    Fault(
        "IPv6: forwarding switched off, as doctor sees it",
        ("sysctl -qw net.ipv6.conf.all.forwarding=0",),
        "net/ipv6/conf/all/forwarding = 0",
    ),
    Fault(
        "IPv6: entry changed, as doctor sees it",
        ("bridge fdb replace {mac2_6} dev overlay-v6.1 dst 2001:db8:1::99 self permanent",),
        "set fdb {mac2_6} dev overlay-v6.1 dst {public2_6}",
    ),
    Fault(
        "IPv6: FORWARD policy DROP, as doctor sees it",
        ("ip6tables -P FORWARD DROP",),
        "FORWARD drops what pods send",
        undo=("ip6tables -P FORWARD ACCEPT",),
    ),
    Fault(
        "IPv6: tunnel's port closed by a firewall of the node",
        ("ip6tables -A INPUT -p udp --dport 8472 -j DROP",),
        "drops what peers send to UDP 8472",
        undo=("ip6tables -D INPUT -p udp --dport 8472 -j DROP",),
        is_agent_away=False,
    ),
)
