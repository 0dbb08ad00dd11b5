"""A packet's way there and back over this node, observed: what ``overlay.trace`` explains."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from overlay.kernel.asked import Ground
from overlay.kernel.base import KernelError
from overlay.kernel.iptables import legacy_listing
from overlay.kernel.nft import NftError
from overlay.kernel.nft_listing import read_ruleset
from overlay.kernel.way import Surveyor, legacy_tables
from overlay.model.address import Family, IPAddress, family_of
from overlay.policy.iptables_listing import iptables_listing
from overlay.policy.listing import Listing, merged
from overlay.policy.ruleset import TABLE
from overlay.policy.verdict import Packet
from overlay.trace.facts import LinkFact, Observed
from overlay.trace.holders import Knowledge
from overlay.trace.parties import Names

_CLIENT_PORT: Final = 40000  # for rules that look at it: any that a program may be given


@dataclass(frozen=True, slots=True)
class Question:
    """Whose packet: SRC and DST as they were asked for. ``protocol`` is as of ``Packet``."""

    source: str
    destination: str
    protocol: str = "icmp"
    port: int | None = None
    family: Family | None = None


def survey(ground: Ground, knowledge: Knowledge, question: Question) -> Observed:
    """Return all that is to be known here of the packet's way. Raises OverlayError."""

    def is_local(address: IPAddress) -> bool:
        return ground.route(Packet(address, address), is_local=True).kind == "local"

    names = Names(knowledge, is_local)
    source, destination = names.pair(question.source, question.destination, question.family)
    ruleset, has_table, notes = _rules(source.address)
    pods = {address: a for a in knowledge.attachments for address in a.addresses}
    surveyor = Surveyor(ground, ruleset, pods)
    protocol, port = question.protocol, question.port
    own_port = _CLIENT_PORT if protocol != "icmp" else None
    packet = Packet(source.address, destination.address, protocol, own_port, port)
    if source.is_here and source.kind == "node" and source.asked != str(source.address):
        # A program that has not bound itself sends from the address that the route names.
        chosen = ground.route(packet, is_local=True).source or source.address
        source, packet = replace(source, address=chosen), replace(packet, source=chosen)
    forward = surveyor.leg(packet, source, destination)
    back = None
    if "other" not in {source.kind, destination.kind}:
        answer = Packet(
            destination.address, source.address, protocol, port, own_port, is_answer=True
        )
        back = surveyor.leg(answer, destination, source)
    return Observed(
        source=source,
        destination=destination,
        own=knowledge.own,
        forward=forward,
        back=back,
        knows_leases=knowledge.is_complete,
        has_table=has_table,
        tunnels=_tunnels(ground),
        notes=(*knowledge.notes, *notes),
    )


def _rules(address: IPAddress) -> tuple[Listing, bool, Sequence[str]]:
    """Return the rules, iptables-legacy's too, whether ours are in them, and what is not known."""
    legacy, notes = _legacy(family_of(address))
    try:
        ruleset = read_ruleset()
    except NftError as exc:
        return legacy, True, (f"rules are not known: {exc}", *notes)
    has_table = any(" ".join(place[:2]) == TABLE for place in ruleset.chains)
    return merged(ruleset, legacy), has_table, notes


def _legacy(family: Family) -> tuple[Listing, Sequence[str]]:
    try:
        found = legacy_listing(family)
    except KernelError:
        return Listing(), legacy_tables()
    if found is None:
        return Listing(), ()
    program, chains = found
    return iptables_listing(family, chains, program), ()


def _tunnels(ground: Ground) -> dict[Family, LinkFact]:
    found: dict[Family, LinkFact] = {}
    for name, info in sorted(ground.links.items()):
        link = ground.link(name)
        if info.vxlan is None or link is None or link.local is None or not link.is_ours:
            continue
        found[family_of(link.local)] = link
    return found
