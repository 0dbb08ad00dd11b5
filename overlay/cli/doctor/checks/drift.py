"""Whether the kernel holds what the leases ask for.

The running agent is asked, which puts right what differs within milliseconds:
only what it still wants a moment later is a finding. Without an agent the same
plan is made here, from the store.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Final

from overlay.cli.doctor.facts import CannotTellError, Facts
from overlay.cli.doctor.verdicts import MOST_NAMED, Check, Fine, Scope, Verdict, error
from overlay.model.errors import OverlayError
from overlay.model.lease import Lease
from overlay.model.node import NodeIdentity, Underlay
from overlay.plan.diff import diff
from overlay.plan.planner import Site, desired
from overlay.plan.registry import load_backend

_MOMENT_S: Final = 0.3


def _run(facts: Facts) -> Iterator[Verdict]:
    try:
        ops = facts.drift()
        if ops:
            time.sleep(_MOMENT_S)
            again = set(facts.drift())
            ops = [op for op in ops if op in again]
        who = "the agent wants"
    except OverlayError:
        ops = _planned(facts)
        who = "the leases ask"
    if ops:
        shown = "; ".join(ops[:MOST_NAMED])
        more = f" and {len(ops) - MOST_NAMED} more" if len(ops) > MOST_NAMED else ""
        reason = f"the kernel is not as {who}: {shown}{more}"
        yield error(reason, "systemctl restart overlayd")
    else:
        yield Fine(f"as {who}")


def _planned(facts: Facts) -> Sequence[str]:
    """Return what would change in the kernel, in ``ip`` and ``bridge`` words."""
    view, own = facts.view(), facts.own_lease()
    if view.config is None or own is None:
        msg = "neither an agent nor a lease of this node tells what the kernel should hold"
        raise CannotTellError(msg)
    owner = own.attributes.owner
    if owner is None:
        msg = f"the lease {own.subnet} is flannel's"
        raise CannotTellError(msg)
    backend = load_backend(view.config, NodeIdentity(owner.node_id, owner.node_name))
    site = Site(view.config, backend, own, _underlay(facts, own))
    wanted = desired(site, view.leases).objects.values()
    return [str(op) for op in diff(wanted, facts.fabric().objects)]


def _underlay(facts: Facts, own: Lease) -> Underlay:
    """Return the interface that has the lease's public addresses, or that the devices are on."""
    public = own.attributes.public
    under = set(facts.fabric().underlays)
    for name, link in facts.links().items():
        found = facts.addresses().get(link.index, ())
        local = {
            family: next(
                (a for a in found if a.ip == address),
                next((a for a in found if a.version == address.version and name in under), None),
            )
            for family, address in public.items()
        }
        if all(local.values()):
            chosen = {family: address for family, address in local.items() if address is not None}
            return Underlay(name, link.mtu, chosen, public)
    msg = f"no interface has the lease's address {', '.join(map(str, public.values()))}"
    raise CannotTellError(msg)


CHECK: Final = Check("drift", "the kernel against the leases", _run, Scope.STORE)
