"""``overlayctl doctor``: from flags to a report."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from overlay.cli.flags import Parser, with_output
from overlay.cli.out import Output
from overlay.model.errors import UsageError


def add_parser(commands: Any) -> None:
    """Add the command."""
    about = "what in this host would break the fabric, and how to mend it; status 1 on a finding"
    parser: Parser = commands.add_parser("doctor", help=about, description=about)
    parser.add_argument("--all", action="store_true", help="show what is fine, too")
    parser.add_argument("--local", action="store_true", help="ask neither the store nor peers")
    for flag, text in (("only", "make these checks alone"), ("skip", "leave these checks out")):
        parser.add_argument(
            f"--{flag}", action="append", default=[], metavar="CHECK[,CHECK]", help=text
        )
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR",
        help="where the host's files are, for one that runs in a container (/)",
    )  # fmt: skip
    parser.add_argument("--state-dir", type=Path, default=Path("/run/overlay"), metavar="DIR")
    parser.add_argument("--cni-conf-dir", type=Path, default=Path("/etc/cni/net.d"), metavar="DIR")
    parser.set_defaults(run=with_output(examine))


def examine(args: Namespace, out: Output) -> int:
    """Run the checks and print what they say; return 1 on a finding.

    Raises UsageError for a check that is not there.
    """
    from overlay.cli.doctor.catalog import CHECKS
    from overlay.cli.doctor.facts import gather
    from overlay.cli.doctor.report import Progress, print_reports
    from overlay.cli.doctor.runner import run
    from overlay.cli.doctor.verdicts import Scope

    only, skipped = _names(args.only), _names(args.skip)
    unknown = (only | skipped) - {check.name for check in CHECKS}
    if unknown:
        known = ", ".join(check.name for check in CHECKS)
        raise UsageError(f"doctor: no check {', '.join(sorted(unknown))}; there are {known}")
    checks = [
        check
        for check in CHECKS
        if (not only or check.name in only)
        and check.name not in skipped
        and (check.scope is Scope.HOST or not args.local)
    ]
    reports = run(checks, gather(args), Progress())
    print_reports(reports, out, is_whole=args.all)
    return 1 if any(report.findings for report in reports) else 0


def _names(values: list[str]) -> set[str]:
    return {name.strip() for value in values for name in value.split(",") if name.strip()}
