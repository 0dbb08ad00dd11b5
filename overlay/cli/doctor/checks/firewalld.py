"""Whether firewalld lets the fabric pass.

What is in no trusted zone it rejects, whatever our own table accepts; and at
each reload it flushes iptables' chains, not tables of others (firewalld#863).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.filtering import nft_judgements
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
            if found.is_dropped is not False:
                yield error(
                    f"firewalld rejects what comes out of {device or 'the tunnel'} for pods: "
                    f"{found.by}",
                    f"firewall-cmd --permanent --zone=trusted --add-source={network} && {_RELOAD}",
                )
    for port in fabric.ports:
        peer = next(iter(fabric.peers), None)
        packet = fabric.tunnel_packet(Family.IPV4 if peer is None else family_of(peer), port)
        for found in nft_judgements(packet, rules, "input"):
            if found.is_dropped is not False:
                yield error(
                    f"firewalld lets no VXLAN in (UDP {port}): {found.by}",
                    f"firewall-cmd --permanent --add-port={port}/udp && {_RELOAD}",
                )


CHECK: Final = Check("firewalld", "firewalld's table, for pods and the tunnel's port", _run)
