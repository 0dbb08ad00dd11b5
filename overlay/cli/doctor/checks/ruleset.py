"""Whether our own nftables table is there: without it pods leave with an address nobody knows."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error
from overlay.policy.ruleset import TABLE


def _run(facts: Facts) -> Iterator[Verdict]:
    chains = [place for place in facts.rules().chains if " ".join(place[:2]) == TABLE]
    if chains:
        yield Fine(f"table {TABLE} has {len(chains)} chains")
    elif facts.fabric().is_there:
        reason = f"table {TABLE} is gone: nobody masquerades pods or guards the tunnel"
        yield error(reason, "systemctl restart overlayd")
    else:
        yield Fine("overlayd writes it when it starts")


CHECK: Final = Check("ruleset", "whether nftables has our table", _run)
