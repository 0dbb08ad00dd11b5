"""Whether ufw lets the tunnel in; that it lets pods pass is the agent's doing (OVERLAY-FORWARD)."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.filtering import iptables_judgements
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error
from overlay.cli.doctor.walk import Packet
from overlay.kernel import iptables
from overlay.model.address import Family, IPAddress, family_of

_CHAIN: Final = {Family.IPV4: "ufw-user-input", Family.IPV6: "ufw6-user-input"}


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    families: dict[Family, IPAddress | None] = {Family.IPV4: None}
    families |= {family_of(peer): peer for peer in reversed(fabric.peers)}
    is_active = False
    for family, peer in families.items():
        if not any(_CHAIN[family] in chains for chains in iptables.listing(family).values()):
            continue
        is_active = True
        for port in fabric.ports:
            under = fabric.underlays[0] if fabric.underlays else ""
            packet = Packet(family, peer, None, port, iif=under)
            closed = [
                j for j in iptables_judgements(packet, "INPUT") if j.outcome.is_dropped is not False
            ]
            if closed:
                reason = f"ufw lets no VXLAN in (UDP {port}): {closed[0].outcome.by}"
                yield error(reason, f"ufw allow proto udp to any port {port}")
            else:
                yield Fine(f"active, and lets UDP {port} in")
    if not is_active:
        yield Fine("not active")


CHECK: Final = Check("ufw", "ufw's chains, for the tunnel's port", _run)
