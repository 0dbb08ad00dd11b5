"""Whether firewalld lets the fabric pass.

What is in no trusted zone it rejects, whatever our own table accepts; and at
each reload it flushes iptables' chains, not tables of others (firewalld#863).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.filtering import Judgement, nft_judgements, tunnel_packet
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error
from overlay.kernel.host.daemons import running
from overlay.model.address import Family, family_of
from overlay.policy.listing import Listing
from overlay.policy.packet import Packet

_NAME: Final = "firewalld"
_RELOAD: Final = "firewall-cmd --reload"
_ANY_PORT: Final = 80


def _run(facts: Facts) -> Iterator[Verdict]:
    found = facts.rules()
    chains = {p: chain for p, chain in found.chains.items() if p[1].startswith(_NAME)}
    if not chains:
        if running({_NAME}):
            yield Unknown("firewalld runs, but has no nftables table; see the check forward-policy")
        else:
            yield Fine("not active")
        return
    blocked = list(_blocked(facts, replace(found, chains=chains)))
    yield from blocked or [Fine("active, and lets the fabric pass")]


def _blocked(facts: Facts, rules: Listing) -> Iterator[Verdict]:
    fabric = facts.fabric()
    for network in fabric.networks:
        source, destination = network[2], network[3]
        device = next(
            (d.name for d in fabric.devices if family_of(d.local) is family_of(network)), ""
        )
        packet = Packet(
            source, destination, "udp", port=_ANY_PORT, iif=device, unknown=frozenset({"oif"})
        )
        for found in nft_judgements(packet, rules, "forward"):
            yield from _judge(
                found,
                ("rejects", f"what comes out of {device or 'the tunnel'} for pods"),
                f"--zone=trusted --add-source={network}",
            )
    for port in fabric.ports:
        peer = next(iter(fabric.peers), None)
        packet = tunnel_packet(facts, Family.IPV4 if peer is None else family_of(peer), port)
        for found in nft_judgements(packet, rules, "input"):
            yield from _judge(found, ("keeps out", f"VXLAN (UDP {port})"), f"--add-port={port}/udp")


def _judge(found: Judgement, what: tuple[str, str], remedy: str) -> Iterator[Verdict]:
    does, packets = what
    if found.is_dropped:
        mend = f"firewall-cmd --permanent {remedy} && {_RELOAD}"
        yield error(f"firewalld {does} {packets}: {found.by}", mend)
    elif found.is_dropped is None:
        yield Unknown(f"firewalld may stop {packets}: {found.by}")


CHECK: Final = Check("firewalld", "firewalld's table, for pods and the tunnel's port", _run)
