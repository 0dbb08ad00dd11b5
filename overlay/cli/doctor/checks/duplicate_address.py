"""Whether each public address has one lease: of two nodes with one, one is not reached."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Verdict, error, named
from overlay.model.address import IPAddress
from overlay.model.lease import Lease


def _run(facts: Facts) -> Iterator[Verdict]:
    holders: dict[IPAddress, list[Lease]] = defaultdict(list)
    for lease in facts.view().leases.values():
        for address in lease.attributes.public.values():
            holders[address].append(lease)
    own = facts.own_lease()
    for address, leases in holders.items():
        if len(leases) > 1:
            shown = named(f"{lease.subnet} of {lease.node}" for lease in leases)
            # Whose node is gone cannot be told from here, but where one is this node's own.
            others = [lease for lease in leases if lease is not own]
            if len(others) < len(leases):
                mend = "; ".join(f"overlayctl leases release {o.subnet.key}" for o in others)
            else:
                mend = f"overlayctl leases show {address}  # release that of the node that is gone"
            reason = f"{len(leases)} leases have public address {address}: {shown}"
            yield error(reason, mend)
    yield Fine(f"{len(holders)} public addresses")


CHECK: Final = Check("duplicate-address", "public addresses of all leases", _run, Scope.STORE)
