"""``explain``: the way of a packet, step by step, from what the kernel says now."""

import os
from argparse import Namespace
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from overlay.cli.explain_live import send_and_watch, show
from overlay.cli.flags import Parser
from overlay.cli.knowledge import read_knowledge
from overlay.cli.out import Output
from overlay.cli.parties import Names
from overlay.kernel.asked import Ground
from overlay.kernel.nft import NftError
from overlay.kernel.nft_listing import read_ruleset
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.way import Surveyor, legacy_tables
from overlay.model.address import Family, IPAddress, family_of
from overlay.model.errors import UsageError
from overlay.policy.listing import Listing
from overlay.policy.ruleset import TABLE
from overlay.policy.verdict import Packet
from overlay.trace.explain import explain
from overlay.trace.facts import LinkFact, Observed, Party
from overlay.trace.steps import Step, Way

_COLUMNS: Final = ("", "WHERE", "STEP", "MTU", "WHAT")
_MARKS: Final = {"ok": "ok", "assumed": "assumed", "note": "note", "broken": "BREAKS"}
_CLIENT_PORT: Final = 40000  # for rules that look at it: any that a program may be given


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
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Print the way; return 1 when it breaks."""
    if os.geteuid() != 0:
        raise UsageError("explain looks into pods' namespaces: run it as root")
    protocol = args.proto or ("tcp" if args.port is not None else "icmp")
    if args.port is not None and (protocol == "icmp" or not 0 < args.port < 65536):
        raise UsageError(f"--port {args.port}: 1 to 65535, with --proto tcp or udp")
    out = Output(args.output)
    with closing(RtnlSocket()) as rtnl:
        observed = observe(args, Ground(rtnl), protocol)
    way = explain(observed)
    seen = send_and_watch(observed) if args.live else None
    _print(out, observed, way, seen)
    return 1 if way.broken is not None or (seen is not None and seen["broken"]) else 0


def observe(args: Namespace, ground: Ground, protocol: str) -> Observed:
    """Return all that is to be known of the packet's way there and back. Raises OverlayError."""
    knowledge = read_knowledge(args, ground.addresses())
    family = Family(int(args.family)) if args.family else None

    def is_local(address: IPAddress) -> bool:
        return ground.route(Packet(address, address), is_local=True).kind == "local"

    source, destination = Names(knowledge, is_local).pair(args.source, args.destination, family)
    notes = [*knowledge.notes]
    try:
        ruleset, has_table = read_ruleset(), True
        has_table = any(" ".join(place[:2]) == TABLE for place in ruleset.chains)
    except NftError as exc:
        ruleset, has_table = Listing(), True
        notes.append(f"rules are not known: {exc}")
    notes += legacy_tables()
    pods = {address: a for a in knowledge.attachments for address in a.addresses}
    surveyor = Surveyor(ground, ruleset, pods)
    port = _CLIENT_PORT if protocol != "icmp" else None
    packet = Packet(source.address, destination.address, protocol, port, args.port)
    if source.is_here and source.kind == "node" and source.asked != str(source.address):
        # A program that has not bound itself sends from the address that the route names.
        chosen = ground.route(packet, is_local=True).source or source.address
        source, packet = replace(source, address=chosen), replace(packet, source=chosen)
    forward = surveyor.leg(packet, source, destination)
    back = None
    if "other" not in {source.kind, destination.kind}:
        answer = Packet(
            destination.address, source.address, protocol, args.port, port, is_answer=True
        )
        back = surveyor.leg(answer, destination, source)
    return Observed(
        source=source,
        destination=destination,
        own=knowledge.own,
        forward=forward,
        back=back,
        knows_leases=knowledge.is_complete,
        has_table=has_table,
        tunnels=_tunnels(ground),
        notes=tuple(notes),
    )


def _tunnels(ground: Ground) -> dict[Family, LinkFact]:
    found: dict[Family, LinkFact] = {}
    for name, info in sorted(ground.links.items()):
        link = ground.link(name)
        if info.vxlan is None or link is None or link.local is None or not link.is_ours:
            continue
        found[family_of(link.local)] = link
    return found


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
        out.line(f"nothing on this node is in the way{size}")
    if seen is not None:
        show(out, seen)


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
