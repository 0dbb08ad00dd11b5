"""Whether a firewall's FORWARD chain drops what pods send (Docker and ufw set such policies)."""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from overlay.cli.doctor.facts import CannotTellError, Facts
from overlay.cli.doctor.filtering import Judgement, iptables_judgements, nft_judgements
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error
from overlay.cli.doctor.walk import Packet
from overlay.model.address import Family, IPAddress, IPNetwork, family_of

_ANY_PORT: Final = 80
_FIREWALLD: Final = "firewalld"  # has a check of its own
# Of the ranges for documentation (RFC 5737, RFC 3849): nobody has a rule for them.
_OUTSIDE: Final = {
    Family.IPV4: ip_address("203.0.113.1"),
    Family.IPV6: ip_address("2001:db8:ffff::1"),
}


def _run(facts: Facts) -> Iterator[Verdict]:
    networks = facts.fabric().networks
    if not networks:
        msg = "no agent has run here, so the pod networks are not known"
        raise CannotTellError(msg)
    for network in networks:
        family = family_of(network)
        told: set[str] = set()
        for target, whom in ((network[3], "to pods"), (_OUTSIDE[family], "to the outside")):
            for found in _judgements(facts, family, network[2], target):
                if found.where not in told and found.outcome.is_dropped is not False:
                    told.add(found.where)
                    yield _verdict(found, network, whom)
        if not told:
            yield Fine(f"packets of {network} pass")


def _judgements(
    facts: Facts, family: Family, source: IPAddress, target: IPAddress
) -> Iterator[Judgement]:
    packet = Packet(family, source, target, _ANY_PORT)
    yield from iptables_judgements(packet, "FORWARD")
    for found in nft_judgements(packet, facts.chains(), "forward"):
        if _FIREWALLD not in found.where:
            yield found


def _verdict(found: Judgement, network: IPNetwork, whom: str) -> Verdict:
    by = found.outcome.by
    if found.outcome.is_dropped is None:
        return Unknown(f"{found.where} may drop what pods send {whom}: {by}")
    reason = f"{found.where} drops what pods send {whom}: {by}"
    if found.is_iptables:
        rule = f"{found.where.partition(' ')[0]} -I FORWARD"
        return error(reason, f"{rule} -s {network} -j ACCEPT && {rule} -d {network} -j ACCEPT")
    ip = "ip" if network.version == Family.IPV4.value else "ip6"
    rule = f"nft insert rule {found.where.removeprefix('nft chain ')} {ip}"
    return error(reason, f"{rule} saddr {network} accept && {rule} daddr {network} accept")


CHECK: Final = Check("forward-policy", "FORWARD chains of iptables and nftables", _run)
