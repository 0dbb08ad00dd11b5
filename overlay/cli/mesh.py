"""``mesh`` and ``mtu``: how good the ways between the nodes are."""

from argparse import Namespace
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

from overlay.cli import shapes
from overlay.cli.ask import (
    HTTP_PORT,
    AgentSealer,
    Place,
    Sealer,
    StoreSealer,
    ask,
    find_node,
    parse_port,
)
from overlay.cli.control import AgentRefusedError, AgentUnreachableError, call
from overlay.cli.flags import Parser, socket_path, store_config, with_output
from overlay.cli.out import Output
from overlay.cli.watch import watchable
from overlay.mesh.matrix import Cell, matrix, way_of
from overlay.store.base import LeaseStore

_MOST_COLUMNS: Final = 12  # nodes; more, and a line for each of this node's ways is shown


def add_parsers(commands: Any) -> None:
    """Add the two commands."""
    about = "round trips and losses between the nodes; status 1 when a peer does not answer"
    mesh: Parser = commands.add_parser("mesh", help=about, description=about)
    text = "as they are without the overlay"
    mesh.add_argument("--underlay", action="store_true", help=text)
    text = "a line a way, for all that is known"
    mesh.add_argument("--links", action="store_true", help=text)
    text = "ask another node's agent, over HTTP, under the fabric's key"
    mesh.add_argument("--at", metavar="NODE", default="", help=text)
    text = f"its --healthz-port ({HTTP_PORT})"
    mesh.add_argument("--at-port", metavar="PORT", default=str(HTTP_PORT), help=text)
    watchable(mesh, with_output(show_mesh))
    about = "the largest packet that reaches each peer, and the devices; status 1 when one is less"
    mtu: Parser = commands.add_parser("mtu", help=about, description=about)
    mtu.add_argument("--now", action="store_true", help="search anew instead of the last answer")
    watchable(mtu, with_output(show_mtu))


def show_mesh(args: Namespace, out: Output) -> int:
    """Print the matrix, from the node at the left to the node at the top, in milliseconds."""
    found = (
        ask(*_asked(args), "mesh", like=shapes.MESH)
        if args.at
        else call(socket_path(args), "mesh", like=shapes.MESH)
    )
    way = "underlay" if args.underlay else way_of(found)
    shown = matrix(found, way, len(found["peers"]) + 1)
    if not out.is_table:
        out.document(found)
    elif args.links or len(shown.names) > _MOST_COLUMNS:
        ways = sorted(shown.cells.items())
        rows = [
            [*names, *_words(cell)]
            for names, cell in ways
            if args.links or names[0] == found["node"]
        ]
        out.table(("FROM", "TO", "MS", "LOST"), rows, found)
    else:
        cells = [
            [origin, *("" if origin == to else shown.cell(origin, to) for to in shown.names)]
            for origin in shown.names
        ]
        out.table((f"{way.upper()} MS", *shown.names), cells, found)
    if found["error"] and out.is_table:
        out.line(f"not measured: {found['error']}")
    return 1 if found["error"] or any(_is_silent(peer) for peer in found["peers"]) else 0


def _asked(args: Namespace) -> tuple[Sealer, Place]:
    """Return where another node's agent listens, and who seals: this node's agent if it can.

    It answers at once, and without the store too.
    """
    port, path = parse_port("--at-port", args.at_port), socket_path(args)
    try:
        peers = call(path, "peers", like=shapes.PEERS)["peers"]
    except (AgentUnreachableError, AgentRefusedError):
        peers = []
    found = next((p for p in peers if p["node"] == args.at and p["public"]), None)
    if found is not None:
        return AgentSealer(path), Place(args.at, ip_address(found["public"][0]), port)
    store: LeaseStore = args.open_store(store_config(args))
    try:
        view = store.view()
    finally:
        store.close()
    address = next(iter(find_node(view, args.at).attributes.public.values()))
    return StoreSealer(view), Place(args.at, address, port)


def show_mtu(args: Namespace, out: Output) -> int:
    """Print each path's MTU beside what the devices need; 1 when one carries less."""
    found = call(socket_path(args), "mtu", {"now": True} if args.now else None, like=shapes.MTU)
    rows = [
        [p["node"], p["public"], p["out"], p["back"], found["needed"], _verdict(p, found)]
        for p in found["peers"]
    ]
    out.table(("NODE", "ADDRESS", "THERE", "BACK", "NEEDED", ""), rows, found)
    if found["error"] and out.is_table:
        out.line(f"not measured: {found['error']}")
    is_waiting = found.get("searching") is True
    lacking = [p for p in found["peers"] if p["fits"] is False or not (p["fits"] or is_waiting)]
    return 1 if found["error"] or lacking else 0


def _verdict(peer: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if peer["fits"] is None and found.get("searching") is True:
        return "is being searched; --now waits for it"
    if peer["fits"] is None:
        return "no answer: is UDP --probe-port open on both nodes?"
    if peer["fits"]:
        return "fits"
    room = min(peer["out"], peer["back"]) - (found["needed"] - (found["device_mtu"] or 0))
    return f"too small: set Backend.MTU {room}, or start overlayd with --pmtu-clamp"


def _is_silent(peer: Mapping[str, Any]) -> bool:
    return any(peer[way] is not None and peer[way]["silent"] for way in ("overlay", "underlay"))


def _words(cell: Cell) -> tuple[object, str]:
    return cell.rtt_ms, "" if cell.loss is None else f"{cell.loss:.0%}"
