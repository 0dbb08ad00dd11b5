"""Whether this node holds a lease: without one its peers forget it."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Unknown, Verdict, error, named


def _run(facts: Facts) -> Iterator[Verdict]:
    own = facts.own_lease()
    if own is not None:
        yield Fine(f"{own.subnet}")
    elif facts.fabric().is_there:
        subnets = named(facts.fabric().own)
        reason = f"no lease is this node's, but its kernel has {subnets or 'a fabric'}"
        yield error(f"{reason}: peers forget it", "systemctl restart overlayd")
    else:
        yield Unknown("no lease is this node's; no agent has run here")


CHECK: Final = Check("own-lease", "this node's lease, by address or node id", _run, Scope.STORE)
