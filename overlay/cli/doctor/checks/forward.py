"""Whether a firewall's FORWARD chain drops what pods send (Docker and ufw set such policies)."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.fabric import NOBODY
from overlay.cli.doctor.facts import CannotTellError, Facts
from overlay.cli.doctor.filtering import Judgement, iptables_judgements, nft_judgements
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error
from overlay.model.address import Family, IPAddress, IPNetwork, family_of
from overlay.model.node import POD_LINK_PREFIX
from overlay.policy.packet import Packet

_ANY_PORT: Final = 80
_A_POD: Final = f"{POD_LINK_PREFIX}0"  # a link such as pods have
_FIREWALLD: Final = "firewalld"  # has a check of its own


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    networks = fabric.networks
    if not networks:
        msg = "no agent has run here, so the pod networks are not known"
        raise CannotTellError(msg)
    for network in networks:
        family = family_of(network)
        told: set[str] = set()
        tunnel = next((d for d in fabric.devices if family_of(d.local) is family), None)
        ways = (
            (network[3], tunnel.name if tunnel else "", "to pods"),
            (NOBODY[family], tunnel.underlay if tunnel else "", "to the outside"),
        )
        for target, oif, whom in ways:
            for found in _judgements(facts, network[2], target, oif):
                if found.where not in told and found.is_dropped is not False:
                    told.add(found.where)
                    yield _verdict(found, network, whom)
        if not told:
            yield Fine(f"packets of {network} pass")


def _judgements(
    facts: Facts, source: IPAddress, target: IPAddress, oif: str
) -> Iterator[Judgement]:
    packet = Packet(
        source,
        target,
        "udp",
        port=_ANY_PORT,
        iif=_A_POD,
        oif=oif,
        unknown=frozenset() if oif else frozenset({"oif"}),
    )
    yield from iptables_judgements(packet, "FORWARD")
    for found in nft_judgements(packet, facts.rules(), "forward"):
        if _FIREWALLD not in found.where:
            yield found


def _verdict(found: Judgement, network: IPNetwork, whom: str) -> Verdict:
    by = found.by
    if found.is_dropped is None:
        return Unknown(f"{found.where} may drop what pods send {whom}: {by}")
    reason = f"{found.where} drops what pods send {whom}: {by}"
    if found.is_iptables:
        rule = f"{found.where.partition(' ')[0]} -I FORWARD"
        return error(reason, f"{rule} -s {network} -j ACCEPT && {rule} -d {network} -j ACCEPT")
    ip = "ip" if network.version == Family.IPV4.value else "ip6"
    rule = f"nft insert rule {found.where.removeprefix('nft chain ')} {ip}"
    return error(reason, f"{rule} saddr {network} accept && {rule} daddr {network} accept")


CHECK: Final = Check("forward-policy", "FORWARD chains of iptables and nftables", _run)
