"""``python -m tests.netpol [--family F]``: run the conformance cases, and say what came of it."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.table import rewritten
from tests.netpol.casebook import cases
from tests.netpol.conformance import Outcome, ThroughEngine, run, table
from tests.netpol.prober import has_sctp
from tests.netpol.site import site
from tests.netpol.through_agents import ThroughAgents, is_for_agents


def main(argv: Sequence[str]) -> int:
    """Return 0 when every connection was as stated, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.netpol", description=__doc__)
    parser.add_argument("--family", help="run one family alone")
    parser.add_argument("--only", metavar="WORDS", help="run the cases with WORDS in their names")
    parser.add_argument("--write", type=Path, help="put the table between that file's markers")
    parser.add_argument(
        "--through",
        choices=("engine", "agents"),
        default="engine",
        help="who puts policies in force: the engine's table straight into the nodes, or "
        "`overlayctl policy apply`, etcd and the agents",
    )
    args = parser.parse_args(argv)
    chosen = [
        case
        for case in cases()
        if args.family in (None, case.family) and (args.only or "") in case.name
    ]
    with site(f"netpol-{os.getpid()}") as made:
        if args.through == "agents":
            chosen = [case for case in chosen if is_for_agents(case)]
            outcomes = run(made, ThroughAgents(made), chosen, _tell)
        else:
            outcomes = run(made, ThroughEngine(made), chosen, _tell)
    lines = list(table(outcomes))
    print(*lines, sep="\n")
    if not has_sctp():
        print("\nSCTP was not tried: this kernel has none. Its cases were tried by TCP and UDP.")
    if args.write is not None:
        text = args.write.read_text()
        args.write.write_text(rewritten(text, "conformance", "\n".join(lines)))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _tell(outcome: Outcome) -> None:
    sign = "ok  " if outcome.passed else "FAIL"
    print(f"{sign} {outcome.case}", *outcome.wrong, sep="\n       ", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
