"""``overlayctl``: from the command line to one command, and from errors to one line."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from overlay import __version__
from overlay.cli import registry
from overlay.cli.flags import Parser, StoreConfig, resolve
from overlay.model.errors import OverlayError
from overlay.store.kube_config import KubeAccess

if TYPE_CHECKING:
    from overlay.store.base import LeaseStore

_FAULT: Final = 70  # EX_SOFTWARE, sysexits.h
_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
_EPILOG: Final = "Exit status: 0 fine, 1 a finding, 2 usage, 3 unreachable; docs/exit-codes.md."


def open_named(config: StoreConfig) -> "LeaseStore":
    """Return the store that ``config`` names, and load no other one."""
    if isinstance(config, KubeAccess):
        from overlay.store.kube import KubeLeaseStore

        return KubeLeaseStore(config)
    from overlay.store.etcd import EtcdLeaseStore  # gRPC: 0.2 s, not for --help

    return EtcdLeaseStore(config)


def main(
    argv: Sequence[str] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    open_store: "Callable[[StoreConfig], LeaseStore]" = open_named,
) -> int:
    """Run ``overlayctl``; return its exit status (docs/exit-codes.md).

    An error is one line on standard error. A traceback is a fault of ours.
    """
    try:
        args = parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
        resolve(args, environment)
        args.open_store = open_store
        status = int(args.run(args))
        sys.stdout.flush()
    except SystemExit as exc:  # --help and --version
        return int(exc.code or 0)
    except OverlayError as exc:
        sys.stderr.write(f"overlayctl: {' '.join(str(exc).split())}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`). Python flushes again at its end and
        # would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        logging.getLogger(__name__).exception("overlayctl ends by a fault of its own")
        return _FAULT
    return status


def parser(argv: Sequence[str] = ()) -> Parser:
    """Return the parser for ``argv``, or that of all commands; each command sets ``run``."""
    top = Parser(prog="overlayctl", description="Asks and tells the fabric.", epilog=_EPILOG)
    top.add_argument("--version", action="version", version=f"overlayctl {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    registry.add_named(commands, argv)
    return top


if __name__ == "__main__":
    sys.exit(main())
