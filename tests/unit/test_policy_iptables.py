"""What becomes of a packet in chains of iptables, by their text alone."""

import shlex
from ipaddress import ip_address

import pytest

from overlay.policy.iptables_listing import iptables_listing
from overlay.policy.verdict import Packet, Verdict, verdict_of

PACKET = Packet(
    ip_address("192.0.2.2"),
    ip_address("192.0.2.1"),
    "udp",
    port=8472,
    iif="eth0",
    unknown=frozenset({"oif"}),
)


def judged(text: str, packet: Packet = PACKET) -> Verdict:
    chains: dict[str, list[str]] = {"INPUT": []}
    for line in text.strip().splitlines():
        chains.setdefault(shlex.split(line)[1], []).append(line.strip())
    listing = iptables_listing(packet.family, chains)
    return verdict_of(listing, listing.chains["ip", "filter", "INPUT"], packet)


@pytest.mark.parametrize(
    ("rules", "is_dropped"),
    [
        pytest.param("-P INPUT ACCEPT", False, id="policy accepts"),
        pytest.param("-P INPUT DROP", True, id="policy drops"),
        pytest.param("-P INPUT DROP\n-A INPUT -j ACCEPT", False, id="accepted before the policy"),
        pytest.param("-A INPUT -s 192.0.2.0/24 -j DROP", True, id="by source"),
        pytest.param("-A INPUT ! -s 192.0.2.0/24 -j DROP", False, id="by another source"),
        pytest.param("-A INPUT -d 192.0.2.1/32 -j REJECT", True, id="by destination"),
        pytest.param("-A INPUT -i eth+ -j DROP", True, id="by a prefix of the interface"),
        pytest.param("-A INPUT -i eth1 -j DROP", False, id="another interface"),
        pytest.param("-A INPUT -o eth0 -j DROP", None, id="an interface that is not known"),
        pytest.param("-A INPUT -p tcp -j DROP", False, id="another protocol"),
        pytest.param("-A INPUT -p udp -m udp --dport 8000:9000 -j DROP", True, id="a port range"),
        pytest.param("-A INPUT -p udp -m udp --dport 1:80 -j DROP", False, id="another range"),
        pytest.param("-A INPUT -p udp -m udp ! --dport 53 -j DROP", True, id="all but a port"),
        pytest.param("-A INPUT -p udp -m udp --sport 53 -j DROP", None, id="a source port"),
        pytest.param(
            "-A INPUT -m conntrack --ctstate INVALID,ESTABLISHED -j DROP", False, id="a state"
        ),
        pytest.param("-A INPUT -m state --state NEW -j DROP", True, id="a new flow"),
        pytest.param("-A INPUT -m limit --limit 5/s -j ACCEPT\n-P INPUT DROP", None, id="limit"),
        pytest.param("-A INPUT -m limit --limit 5/s -j LOG\n-P INPUT DROP", True, id="log"),
        pytest.param("-A INPUT -j DOCKER\n-P INPUT ACCEPT", None, id="a target nobody knows"),
        pytest.param(
            '-A INPUT -m comment --comment "a -j DROP" -j ACCEPT\n-P INPUT DROP',
            False,
            id="text",
        ),
        pytest.param(
            "-A INPUT -j A\n-A INPUT -j DROP\n-N A\n-A A -j RETURN\n-A A -j ACCEPT",
            True,
            id="jump and return",
        ),
        pytest.param(
            "-A INPUT -g A\n-A INPUT -j ACCEPT\n-N A\n-A A -p tcp -j ACCEPT\n-P INPUT DROP",
            True,
            id="goto comes back to the policy",
        ),
        pytest.param(
            "-A INPUT -m limit --limit 1/s -j A\n-N A\n-A A -j DROP\n-P INPUT ACCEPT",
            None,
            id="perhaps into a chain that drops",
        ),
        pytest.param(
            "-A INPUT -m limit --limit 1/s -j A\n-N A\n-A A -j LOG\n-P INPUT DROP",
            True,
            id="perhaps into a chain that does nothing",
        ),
        pytest.param(
            "-A INPUT -m limit --limit 1/s -j RETURN\n-A INPUT -j DROP",
            None,
            id="perhaps returned before it is dropped",
        ),
        pytest.param(
            "-A INPUT -m limit --limit 1/s -g A\n-N A\n-A INPUT -j DROP",
            None,
            id="perhaps gone for good before it is dropped",
        ),
        pytest.param("-A INPUT -j INPUT\n-P INPUT DROP", None, id="a circle"),
        pytest.param("-A INPUT -p udp -m multiport --dports 53,8472 -j DROP", True, id="ports"),
        pytest.param("-A INPUT -p 17 -j DROP", True, id="a protocol by number"),
        pytest.param("-A INPUT -p icmp -m icmp --icmp-type 8 -j DROP", False, id="only echoes"),
        pytest.param("-A INPUT -p udp -m udp --dport domain -j DROP", None, id="a port by name"),
        pytest.param("-A INPUT -j NFQUEUE --queue-num 1", None, id="a program decides"),
    ],
)
def test_iptables(rules: str, is_dropped: bool | None) -> None:
    found = judged(rules)
    assert (None if found.against is not None else found.stops) is is_dropped


def test_rule_is_told_in_the_words_of_iptables() -> None:
    line = "-A INPUT -s 192.0.2.0/24 -j DROP"
    found = judged(line)
    assert str(found.rule) == line
    doubt = "-A INPUT -m limit --limit 5/s -j ACCEPT"
    found = judged(f"{doubt}\n-P INPUT DROP")
    assert (found.rule, str(found.against)) == (None, doubt)
