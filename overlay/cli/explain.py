"""``explain``: the way of a packet, step by step, from what the kernel says now."""

import os
from argparse import Namespace
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from overlay.cli.ask import HTTP_PORT, parse_port
from overlay.cli.explain_far import far_half, other_party
from overlay.cli.explain_live import send_and_watch, show
from overlay.cli.flags import Parser
from overlay.cli.knowledge import read_knowledge
from overlay.cli.out import Output
from overlay.kernel.asked import Ground
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.survey import Question, survey
from overlay.model.address import Family
from overlay.model.errors import UsageError
from overlay.trace.explain import explain
from overlay.trace.facts import Observed, Party
from overlay.trace.steps import Step, Way

_COLUMNS: Final = ("", "WHERE", "STEP", "MTU", "WHAT")
_MARKS: Final = {"ok": "ok", "assumed": "assumed", "note": "note", "broken": "BREAKS"}


def add_parser(commands: Any) -> None:
    """Add the command."""
    about = "the way of a packet, step by step; status 1 when it breaks"
    parser: Parser = commands.add_parser("explain", help=about, description=about)
    whom = "an address; a pod of this node, as NAMESPACE/NAME or container id; a node; `node`"
    parser.add_argument("source", metavar="SRC", help=whom)
    parser.add_argument("destination", metavar="DST", help="the same")
    parser.add_argument("--proto", choices=("icmp", "tcp", "udp"), help="icmp; with --port tcp")
    parser.add_argument("--port", type=int, metavar="PORT", help="the destination's port")
    parser.add_argument("--family", choices=("4", "6"), help="for names that have both")
    about = "send a tagged probe too, and show where it is seen"
    parser.add_argument("--live", action="store_true", help=about)
    about = "do not ask the other node's agent: its half is assumed"
    parser.add_argument("--local", action="store_true", help=about)
    text = f"the other node's --healthz-port ({HTTP_PORT})"
    parser.add_argument("--at-port", metavar="PORT", default=str(HTTP_PORT), help=text)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Print the way; return 1 when it breaks."""
    if os.geteuid() != 0:
        raise UsageError("explain looks into pods' namespaces: run it as root")
    protocol = args.proto or ("tcp" if args.port is not None else "icmp")
    if args.port is not None and (protocol == "icmp" or not 0 < args.port < 65536):
        raise UsageError(f"--port {args.port}: 1 to 65535, with --proto tcp or udp")
    parse_port("--at-port", args.at_port)
    out = Output(args.output)
    family = Family(int(args.family)) if args.family else None
    question = Question(args.source, args.destination, protocol, args.port, family)
    with closing(RtnlSocket()) as rtnl:
        ground = Ground(rtnl)
        knowledge = read_knowledge(args, ground.addresses())
        observed = survey(ground, knowledge, question)
    way = explain(observed)
    if any(step.state == "assumed" for step in way.steps):
        observed = replace(observed, far=far_half(args, observed, has_agent=knowledge.has_agent))
        way = explain(observed)
    seen = send_and_watch(observed) if args.live else None
    _print(out, observed, way, seen)
    return 1 if way.broken is not None or (seen is not None and seen["broken"]) else 0


def _print(out: Output, observed: Observed, way: Way, seen: dict[str, Any] | None) -> None:
    broken = way.broken
    document = {
        "source": _party(observed.source),
        "destination": _party(observed.destination),
        "packet": {
            "protocol": observed.forward.packet.protocol,
            "port": observed.forward.packet.port,
        },
        "steps": [step.to_json() for step in way.steps],
        "mtu": way.mtu,
        "far": _far(observed),
        "broken": broken.to_json() if broken is not None else None,
    }
    if seen is not None:
        document["live"] = seen
    rows = [_row(step) for step in way.steps]
    out.table(_COLUMNS, rows, document)
    if not out.is_table:
        return
    out.line("")
    if broken is not None:
        out.line(f"breaks at {broken.place} {broken.name}: {broken.fault}")
        out.line(f"mend  {broken.mend}")
    else:
        size = f"; packets of up to {way.mtu} bytes pass" if way.mtu else ""
        where = "either node" if observed.far.there else "this node"
        out.line(f"nothing on {where} is in the way{size}")
    if seen is not None:
        show(out, seen)


def _far(observed: Observed) -> dict[str, Any] | None:
    """Return whether the other node told its half; None where there is none, or it matters not."""
    far = observed.far
    if not far.there and not far.why:
        return None
    return {"node": other_party(observed).node, "asked": bool(far.there), "why": far.why or None}


def _row(step: Step) -> list[object]:
    return [_MARKS[step.state], step.place, step.name, step.mtu or "", step.text]


def _party(party: Party) -> dict[str, Any]:
    return {
        "asked": party.asked,
        "address": str(party.address),
        "kind": party.kind,
        "node": party.node or None,
        "here": party.is_here,
    }
