"""``status``, ``peers`` and ``diff``: what this node's agent says of itself."""

from argparse import Namespace
from typing import Any

from overlay.cli import shapes
from overlay.cli.control import call
from overlay.cli.flags import Parser, socket_path, with_output
from overlay.cli.out import Output


def add_parsers(commands: Any) -> None:
    """Add the three commands."""
    about = "this node's agent; status 1 when something needs a look"
    status: Parser = commands.add_parser("status", help=about, description=about)
    status.set_defaults(run=with_output(show_status))
    about = "the peers that this node sends to"
    peers: Parser = commands.add_parser("peers", help=about, description=about)
    peers.set_defaults(run=with_output(show_peers))
    about = "what the kernel lacks or has too much; status 1 when there is any"
    diff: Parser = commands.add_parser("diff", help=about, description=about)
    diff.set_defaults(run=with_output(show_diff))


def show_status(args: Namespace, out: Output) -> int:
    """Print the agent's state; return 1 when it is not ready or names a problem."""
    status = call(socket_path(args), "status", like=shapes.STATUS)
    node, store = status.get("node") or {}, status.get("store") or {}
    underlay = status.get("underlay") or {}
    facts: dict[str, object] = {
        "node": node.get("name"),
        "id": node.get("id"),
        "version": status.get("version"),
        "phase": status.get("phase"),
        "subnet": status.get("subnet"),
        "backend": status.get("backend"),
        "egress": status.get("egress"),
        "mtu": status.get("mtu"),
        "underlay": [underlay.get("device"), *underlay.get("addresses", [])] if underlay else None,
        "store": _store_words(store),
        "peers": status.get("peers"),
        "uptime": f"{status.get('uptime_s', 0):.0f} s",
    }
    if status.get("stranded"):
        facts["stranded"] = f"{len(status['stranded'])} of this node's pods"
    reasons, problems = status.get("reasons") or [], status.get("problems") or []
    for number, reason in enumerate(reasons, 1):
        facts[f"reason {number}"] = reason
    for number, problem in enumerate(problems, 1):
        facts[f"problem {number}"] = f"{problem.get('about')}: {problem.get('text')}"
    out.facts(facts, status)
    return 1 if reasons or problems or not store.get("connected") else 0


def show_peers(args: Namespace, out: Output) -> int:
    """Print the peers, by subnet."""
    result = call(socket_path(args), "peers", like=shapes.PEERS)
    rows = [
        [p["subnet"], p["node"], p["public"], p["backend"], p["mac"], "yes" if p["flannel"] else ""]
        for p in result.get("peers", [])
    ]
    out.table(("SUBNET", "NODE", "PUBLIC", "BACKEND", "MAC", "FLANNEL"), rows, result)
    return 0


def show_diff(args: Namespace, out: Output) -> int:
    """Print what would change in the kernel, in ``ip`` and ``bridge`` words; 1 when anything."""
    result = call(socket_path(args), "diff", like=shapes.DIFF)
    ops = result.get("ops", [])
    if not out.is_table:
        out.document(result)
    elif not ops:
        out.line("in step")
    else:
        for op in ops:
            out.line(str(op))
    return 1 if ops else 0


def _store_words(store: dict[str, Any]) -> str:
    if store.get("connected"):
        return f"connected, revision {store.get('revision')}"
    return f"not connected: {store.get('error') or 'no answer yet'}"
