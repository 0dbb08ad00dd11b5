"""What the packet filters of this host would do with a packet, in every chain that it comes by."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from overlay.cli.doctor.fabric import NOBODY
from overlay.cli.doctor.facts import Facts
from overlay.kernel import iptables
from overlay.kernel.host.addresses import route_link
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import Family
from overlay.policy.iptables_listing import iptables_listing
from overlay.policy.listing import Listing
from overlay.policy.packet import IP
from overlay.policy.verdict import Packet, Verdict, is_own, verdict_of


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one base chain does with the packet; ``where`` names it as its own tool would.

    ``is_dropped`` is None where it cannot be told; ``by`` is the rule or policy.
    """

    where: str
    is_iptables: bool
    is_dropped: bool | None
    by: str = ""


def tunnel_packet(facts: Facts, family: Family, port: int) -> Packet:
    """Return a packet of a peer to the tunnel's ``port``, as far as it is known.

    Before the first agent it comes in by the interface of the default route,
    which an agent would choose. Raises KernelError.
    """
    packet = facts.fabric().tunnel_packet(family, port)
    if packet.iif:
        return packet
    with RtnlSocket() as rtnl:
        index = route_link(rtnl, NOBODY[family])
    link = next((link.name for link in facts.links().values() if link.index == index), "")
    return replace(packet, iif=link, unknown=packet.unknown - ({"iif"} if link else set()))


def iptables_judgements(packet: Packet, chain: str) -> Iterator[Judgement]:
    """Yield what iptables' built-in ``chain`` does, in each face that has tables."""
    for program, chains in iptables.listing(packet.family).items():
        listing = iptables_listing(packet.family, chains)
        found = listing.chains.get((IP[packet.family], "filter", chain))
        if found is not None:
            where = f"{program} {chain}"
            yield _judged(verdict_of(listing, found, packet), where, is_iptables=True)


def nft_judgements(packet: Packet, listing: Listing, hook: str) -> Iterator[Judgement]:
    """Yield what the nftables chains of ``hook`` do that are neither ours nor iptables'."""
    for chain in listing.at(hook, IP[packet.family]):
        if not is_own(chain.place) and not iptables.is_iptables(*chain.place):
            where = f"nft chain {chain.name}"
            yield _judged(verdict_of(listing, chain, packet), where, is_iptables=False)


def _judged(verdict: Verdict, where: str, *, is_iptables: bool) -> Judgement:
    if verdict.against is not None:
        return Judgement(where, is_iptables, None, f"rule `{verdict.against}`")
    if verdict.rule is not None:
        return Judgement(where, is_iptables, verdict.stops, f"rule `{verdict.rule}`")
    return Judgement(where, is_iptables, verdict.stops, "the policy" if verdict.stops else "")
