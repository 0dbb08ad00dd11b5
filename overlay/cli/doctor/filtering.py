"""What the packet filters of this host would do with a packet, in every chain that it comes by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlay.cli.doctor import walk_iptables, walk_nft
from overlay.cli.doctor.walk import Outcome, Packet, walk
from overlay.kernel import iptables
from overlay.kernel.host.filters import Chain, list_rules
from overlay.model.address import Family
from overlay.policy.ruleset import TABLE

_NFT_FAMILIES = {Family.IPV4: {"ip", "inet"}, Family.IPV6: {"ip6", "inet"}}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one base chain does with the packet; ``where`` names it as its own tool would."""

    where: str
    is_iptables: bool
    outcome: Outcome


def iptables_judgements(packet: Packet, chain: str) -> Iterator[Judgement]:
    """Yield what iptables' built-in ``chain`` does, in each face that has tables."""
    for program, chains in iptables.listing(packet.family).items():
        outcome = walk(
            walk_iptables.rules_for(packet, chains),
            chain,
            drops_by_policy=walk_iptables.drops_by_policy(chains, chain),
        )
        yield Judgement(f"{program} {chain}", is_iptables=True, outcome=outcome)


def nft_judgements(packet: Packet, chains: Sequence[Chain], hook: str) -> Iterator[Judgement]:
    """Yield what the nftables chains of ``hook`` do that are neither ours nor iptables'."""
    for chain in chains:
        if (
            chain.hook != hook
            or chain.family not in _NFT_FAMILIES[packet.family]
            or f"{chain.family} {chain.table}" == TABLE
            or iptables.is_iptables(chain.family, chain.table, chain.name)
        ):
            continue
        rules = walk_nft.rules_for(packet, list_rules(chain.family, chain.table))
        outcome = walk(rules, chain.name, drops_by_policy=chain.policy == "drop")
        yield Judgement(f"nft chain {chain}", is_iptables=False, outcome=outcome)
