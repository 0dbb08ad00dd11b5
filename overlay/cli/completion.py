"""``completion SHELL``: what a shell needs to complete our commands, made of the parser itself."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final

from overlay.cli import completion_bash, completion_fish, completion_zsh
from overlay.cli.flags import Parser, with_output
from overlay.cli.out import Output
from overlay.cli.tree import Command, command_tree

SHELLS: Final[dict[str, Callable[[Command], str]]] = {
    "bash": completion_bash.script,
    "zsh": completion_zsh.script,
    "fish": completion_fish.script,
}


def add_parser(commands: Any) -> None:
    """Add the command."""
    about = "print what a shell needs to complete these commands; docs/cli.md says where to put it"
    parser: Parser = commands.add_parser("completion", help=about, description=about)
    parser.add_argument("shell", choices=sorted(SHELLS))
    parser.set_defaults(run=with_output(show_completion))


def show_completion(args: Namespace, out: Output) -> int:
    """Print the script."""
    from overlay.cli.main import parser  # it imports this module

    text = SHELLS[args.shell](command_tree(parser()))
    if out.is_table:
        for line in text.splitlines():
            out.line(line)
    else:
        out.document({"shell": args.shell, "script": text})
    return 0
