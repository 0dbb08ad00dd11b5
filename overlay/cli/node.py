"""``node reset``: removing from this node what the agent made."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from overlay.cli.flags import DEFAULT_SOCKET, Parser, socket_path, with_output
from overlay.cli.out import Output
from overlay.model.errors import UsageError


def add_parser(commands: Any) -> None:
    """Add ``node`` and its subcommand."""
    about = "this node"
    node: Parser = commands.add_parser("node", help=about, description=about)
    verbs = node.add_subparsers(required=True, metavar="COMMAND", dest="verb")
    about = "remove all that the agent made on this node, and nothing else; stop overlayd first"
    parser = verbs.add_parser("reset", help=about, description=about)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--state-dir", type=Path, default=Path("/run/overlay"), metavar="DIR")
    parser.add_argument("--subnet-file", type=Path, metavar="FILE", help="(DIR/subnet.env)")
    for name, what in (("conf", "our network configurations"), ("bin", "our plugin")):
        about = f"remove {what} from there too"
        parser.add_argument(f"--cni-{name}-dir", type=Path, metavar="DIR", help=about)
    parser.set_defaults(run=with_output(reset))


def reset(args: Namespace, out: Output) -> int:
    """Remove devices, routes, rules, tables and files of ours. Repeating it is safe.

    Raises UsageError without consent or root, and while the agent runs.
    """
    from overlay.cli.cni_removal import remove_config, remove_plugin
    from overlay.kernel.reset import refuse_running_agent, reset_node

    if os.geteuid() != 0:
        raise UsageError("node reset removes devices and routes: run it as root")
    if not args.yes and not _is_agreed():
        raise UsageError("nothing removed; `overlayctl node reset --yes` does not ask")
    path = None if args.socket == DEFAULT_SOCKET else socket_path(args)
    refuse_running_agent(path or args.state_dir / "cni.sock")
    told = _removed if out.is_table else _nothing
    # First: a runtime must not ask for pods that nobody attaches.
    removed = remove_config(args.cni_conf_dir, told)
    removed += reset_node(args.state_dir, args.subnet_file, path, told)
    # Last: until here the runtime may have pods to delete.
    removed += remove_plugin(args.cni_bin_dir, told)
    if not out.is_table:
        out.document({"removed": removed})
    elif not removed:
        out.line("nothing of overlay's was there")
    return 0


def _is_agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stderr.write("Remove overlay's devices, routes and rules; pods here lose contact. [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _removed(line: str) -> None:
    sys.stdout.write(f"removed {line}\n")


def _nothing(_line: str) -> None:
    return
