"""``overlayctl lab``: the lab's commands, from flags to one call each."""

import argparse
import subprocess
import sys
from typing import Final

from overlay.cli.out import Output
from overlay.model.address import FAMILIES, Family
from overlay.model.egress import EgressMode
from overlay.model.errors import UsageError

_FAMILIES: Final[dict[str, tuple[Family, ...]]] = {
    "4": (Family.IPV4,),
    "6": (Family.IPV6,),
    "dual": FAMILIES,
}
_MODES: Final = tuple(mode.value for mode in EgressMode)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``lab`` and its commands; each sets ``run``."""
    lab = subparsers.add_parser("lab", help="a whole fabric on one machine, in namespaces")
    commands = lab.add_subparsers(required=True, metavar="COMMAND", dest="lab_command")

    up = commands.add_parser("up", help="bring a lab up")
    up.add_argument("--nodes", type=int, default=3, help="nodes (3)")
    up.add_argument("--pods", type=int, default=2, help="pods on each node (2)")
    up.add_argument("--backend", default="vxlan", help="vxlan, host-gw or another that is there")
    up.add_argument("--family", choices=tuple(_FAMILIES), default="4", help="4, 6 or dual (4)")
    up.add_argument("--egress", choices=_MODES, default="island", help="egress mode (island)")
    up.add_argument("--direct-routing", action="store_true", help="vxlan: plain routes on layer 2")
    up.add_argument("--mtu", type=int, default=1500, help="the underlay's MTU in bytes (1500)")
    _finish(up, _up)

    _finish(commands.add_parser("status", help="what is up"), _status)
    _finish(commands.add_parser("test", help="every flow, with source and size"), _test)

    exec_ = commands.add_parser("exec", help="run a command in a node, a pod or outside")
    exec_.add_argument("target", metavar="NODE|POD|outside")
    exec_.add_argument("words", metavar="CMD", nargs=argparse.REMAINDER)
    _finish(exec_, _exec)

    _finish(commands.add_parser("down", help="take a lab down and leave nothing"), _down)


def _finish(parser: argparse.ArgumentParser, run: object) -> None:
    parser.add_argument("--name", default="default", help="name of the lab (default)")
    parser.set_defaults(run=run)


def _up(args: argparse.Namespace) -> int:
    from overlay.lab import report, signals
    from overlay.lab.fabric import Lab
    from overlay.lab.topology import LabOptions

    options = LabOptions(
        name=args.name,
        nodes=args.nodes,
        pods=args.pods,
        backend=args.backend,
        families=_FAMILIES[args.family],
        egress=EgressMode(args.egress),
        direct_routing=args.direct_routing,
        mtu=args.mtu,
    )
    lab = Lab(options, progress=report.stderr_progress())
    with signals.as_exceptions():
        lab.up()
    report.print_status(report.status(lab), Output(args.output))
    return 0


def _status(args: argparse.Namespace) -> int:
    from overlay.lab import report
    from overlay.lab.fabric import Lab

    document = report.status(Lab.load(args.name))
    report.print_status(document, Output(args.output))
    return 0 if report.is_well(document) else 1


def _test(args: argparse.Namespace) -> int:
    from overlay.lab import report
    from overlay.lab.fabric import Lab

    results = Lab.load(args.name).test()
    report.print_results(results, Output(args.output))
    return 0 if all(result.is_expected for result in results) else 1


def _exec(args: argparse.Namespace) -> int:
    from overlay.lab.fabric import Lab, require_root

    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        msg = "lab exec: no command; write `overlayctl lab exec n1 -- ip route`"
        raise UsageError(msg)
    require_root()
    command = Lab.load(args.name).command(args.target, words)
    sys.stdout.flush()
    status = subprocess.run(command, check=False).returncode
    return status if status >= 0 else 128 - status  # as shells tell of signals


def _down(args: argparse.Namespace) -> int:
    from overlay.lab import report
    from overlay.lab.fabric import Lab
    from overlay.lab.topology import LabOptions

    Lab(LabOptions(name=args.name), progress=report.stderr_progress()).down()
    return 0
