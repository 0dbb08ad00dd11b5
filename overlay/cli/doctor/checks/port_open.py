"""Whether this host's packet filter takes in what peers send to the tunnel's UDP port."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.filtering import (
    Judgement,
    iptables_judgements,
    nft_judgements,
    tunnel_packet,
)
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error
from overlay.policy.packet import Packet

_OWN_CHECKS: Final = ("firewalld", "ufw")


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    for family in fabric.families:
        for port in fabric.ports:
            packet = tunnel_packet(facts, family, port)
            judgements = [
                *iptables_judgements(packet, "INPUT"),
                *nft_judgements(packet, facts.rules(), "input"),
            ]
            for found in judgements:
                yield from _judge(found, packet)
    yield Fine(f"UDP {', '.join(map(str, fabric.ports)) or 'no tunnel'}")


def _judge(found: Judgement, packet: Packet) -> Iterator[Verdict]:
    what, by = f"what peers send to UDP {packet.port}", found.by
    if any(name in f"{found.where} {by}" for name in _OWN_CHECKS):
        return
    if found.is_dropped:
        if found.is_iptables:
            program = found.where.partition(" ")[0]
            remedy = f"{program} -I INPUT -p udp --dport {packet.port} -j ACCEPT"
        else:
            chain = found.where.removeprefix("nft chain ")
            remedy = f"nft insert rule {chain} udp dport {packet.port} accept"
        yield error(f"{found.where} drops {what}: {by}", remedy)
    elif found.is_dropped is None:
        yield Unknown(f"{found.where} may drop {what}: {by}")


CHECK: Final = Check("port-open", "INPUT chains, for the tunnel's UDP port", _run)
