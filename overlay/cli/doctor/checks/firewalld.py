"""Whether firewalld lets the fabric pass.

What is in no trusted zone it rejects, whatever our own table accepts; and at
each reload it flushes iptables' chains, not tables of others (firewalld#863).
"""

from collections.abc import Iterator, Sequence
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.filtering import nft_judgements
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error
from overlay.cli.doctor.walk import Packet
from overlay.kernel.host.daemons import running
from overlay.kernel.host.filters import Chain
from overlay.model.address import Family, family_of

_NAME: Final = "firewalld"
_RELOAD: Final = "firewall-cmd --reload"
_ANY_PORT: Final = 80


def _run(facts: Facts) -> Iterator[Verdict]:
    chains = [chain for chain in facts.chains() if chain.table.startswith(_NAME)]
    if not chains:
        if running({_NAME}):
            yield Unknown("firewalld runs, but has no nftables table; see the check forward-policy")
        else:
            yield Fine("not active")
        return
    blocked = list(_blocked(facts, chains))
    yield from blocked or [Fine("active, and lets the fabric pass")]


def _blocked(facts: Facts, chains: Sequence[Chain]) -> Iterator[Verdict]:
    fabric = facts.fabric()
    for network in fabric.networks:
        source, destination = network[2], network[3]
        device = next(
            (d.name for d in fabric.devices if family_of(d.local) is family_of(network)), ""
        )
        packet = Packet(family_of(network), source, destination, _ANY_PORT, iif=device)
        for found in nft_judgements(packet, chains, "forward"):
            if found.outcome.is_dropped is not False:
                yield error(
                    f"firewalld rejects what comes out of {device or 'the tunnel'} for pods: "
                    f"{found.outcome.by}",
                    f"firewall-cmd --permanent --zone=trusted --add-source={network} && {_RELOAD}",
                )
    for port in fabric.ports:
        under = fabric.underlays[0] if fabric.underlays else ""
        peer = next(iter(fabric.peers), None)
        family = Family.IPV4 if peer is None else family_of(peer)
        packet = Packet(family, peer, None, port, iif=under)
        for found in nft_judgements(packet, chains, "input"):
            if found.outcome.is_dropped is not False:
                yield error(
                    f"firewalld lets no VXLAN in (UDP {port}): {found.outcome.by}",
                    f"firewall-cmd --permanent --add-port={port}/udp && {_RELOAD}",
                )


CHECK: Final = Check("firewalld", "firewalld's table, for pods and the tunnel's port", _run)
