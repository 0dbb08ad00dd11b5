"""Whether ufw lets the tunnel in; that it lets pods pass is the agent's doing (OVERLAY-FORWARD)."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.filtering import iptables_judgements, tunnel_packet
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error
from overlay.kernel import iptables
from overlay.model.address import Family, family_of

_CHAIN: Final = {Family.IPV4: "ufw-user-input", Family.IPV6: "ufw6-user-input"}


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    families = {Family.IPV4, *(family_of(peer) for peer in fabric.peers)}
    is_active = False
    for family in sorted(families):
        if not any(_CHAIN[family] in chains for chains in iptables.listing(family).values()):
            continue
        is_active = True
        for port in fabric.ports:
            found = [*iptables_judgements(tunnel_packet(facts, family, port), "INPUT")]
            closed = next((each for each in found if each.is_dropped), None)
            doubtful = next((each for each in found if each.is_dropped is None), None)
            if closed is not None:
                reason = f"ufw lets no VXLAN in (UDP {port}): {closed.by}"
                yield error(reason, f"ufw allow proto udp to any port {port}")
            elif doubtful is not None:
                yield Unknown(f"ufw may keep VXLAN out (UDP {port}): {doubtful.by}")
            else:
                yield Fine(f"active, and lets UDP {port} in")
    if not is_active:
        yield Fine("not active")


CHECK: Final = Check("ufw", "ufw's chains, for the tunnel's port", _run)
