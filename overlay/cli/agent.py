"""``status``, ``peers`` and ``diff``: what this node's agent says of itself."""

from argparse import Namespace
from typing import Any

from overlay.cli import shapes
from overlay.cli.control import call
from overlay.cli.flags import Parser, socket_path, with_output
from overlay.cli.out import Output
from overlay.cli.watch import watchable


def add_parsers(commands: Any) -> None:
    """Add the three commands."""
    about = "this node's agent; status 1 when something needs a look"
    status: Parser = commands.add_parser("status", help=about, description=about)
    watchable(status, with_output(show_status))
    about = "the peers that this node sends to"
    peers: Parser = commands.add_parser("peers", help=about, description=about)
    watchable(peers, with_output(show_peers))
    verbs = peers.add_subparsers(metavar="COMMAND", dest="verb")
    about = "let go the peers that vanished together and are held back; status 1 when none is"
    prune: Parser = verbs.add_parser("prune", help=about, description=about)
    prune.set_defaults(run=with_output(prune_peers))
    about = "hold them until they come back; status 1 when none is held"
    keep: Parser = verbs.add_parser("keep", help=about, description=about)
    keep.set_defaults(run=with_output(keep_peers))
    about = "what the kernel lacks or has too much; status 1 when there is any"
    diff: Parser = commands.add_parser("diff", help=about, description=about)
    watchable(diff, with_output(show_diff))


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
    policy = status.get("policy")
    if policy:
        facts["policies"] = (
            f"{policy.get('policies')}, which isolate {policy.get('isolated')} addresses here"
        )
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
    shown = ("subnet", "node", "public", "backend", "mac")
    flags = ("flannel", "held") if result.get("held") else ("flannel",)
    rows = [
        [*(p[name] for name in shown), *("yes" if p.get(name) else "" for name in flags)]
        for p in result.get("peers", [])
    ]
    out.table(tuple(name.upper() for name in (*shown, *flags)), rows, result)
    return 0


def prune_peers(args: Namespace, out: Output) -> int:
    """Let the held peers go now. Raises AgentRefusedError where none is held."""
    result = call(socket_path(args), "held", {"answer": "prune"})
    out.facts({"let go": f"{result.get('peers')} peers"}, result)
    return 0


def keep_peers(args: Namespace, out: Output) -> int:
    """Hold the held peers without an end. Raises AgentRefusedError where none is held."""
    result = call(socket_path(args), "held", {"answer": "keep"})
    out.facts({"kept until they come back": f"{result.get('peers')} peers"}, result)
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
