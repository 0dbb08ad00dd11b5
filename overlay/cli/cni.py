"""``cni install``: the plugin and a network configuration where the runtime looks for them."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from overlay.cli.flags import DEFAULT_SOCKET, Parser, socket_path, with_output
from overlay.cli.out import Output
from overlay.model.conflist import (
    KUBERNETES,
    PLUGIN,
    RUNTIMES,
    chained_plugins,
    conflist,
    file_name,
)
from overlay.model.errors import UsageError

BOTH: Final = ("plugin", "config")
SHIM: Final = Path("/usr/lib/overlay/overlay")  # in the image


def add_parser(commands: Any) -> None:
    """Add the group."""
    about = "the CNI plugin on this host"
    group: Parser = commands.add_parser("cni", help=about, description=about)
    verbs = group.add_subparsers(required=True, metavar="VERB", dest="verb")
    about = "put plugin and network configuration in place, each whole or not at all"
    verb: Parser = verbs.add_parser("install", help=about, description=about)
    verb.add_argument("--runtime", choices=sorted(RUNTIMES), default=KUBERNETES)
    verb.add_argument("--bin-dir", type=Path, default=Path("/opt/cni/bin"), metavar="DIR")
    verb.add_argument("--conf-dir", type=Path, default=Path("/etc/cni/net.d"), metavar="DIR")
    verb.add_argument(
        "--shim",
        type=Path,
        metavar="FILE",
        help=f"the built C plugin ({SHIM} or one beside overlayctl; without any, Python's)",
    )
    verb.add_argument("--only", choices=BOTH, help="one of the two alone (both)")
    verb.set_defaults(run=with_output(install))


def install(args: Namespace, out: Output) -> int:
    """Install the plugin, then the configuration that names it. Repeating it is safe.

    The plugin in C starts in a tenth of the time. A plugin that is chained
    behind ours is named in the configuration only where it is there. Raises
    UsageError for a place that cannot be written.
    """
    from overlay_cni.install import install_plugin, install_shim, own_interpreter, replace

    plugin = args.bin_dir / PLUGIN
    file = args.conf_dir / file_name(args.runtime)
    wanted = BOTH if args.only is None else (args.only,)
    socket = "" if args.socket == DEFAULT_SOCKET else str(socket_path(args))
    chained = chained_plugins(args.runtime)
    absent = [name for name in chained if not os.access(args.bin_dir / name, os.X_OK)]
    text = json.dumps(conflist(args.runtime, socket, absent), indent=2) + "\n"
    shim = _shim(args)
    try:
        if "plugin" in wanted and shim is not None:
            install_shim(plugin, shim)
        elif "plugin" in wanted:
            install_plugin(plugin, own_interpreter())
        # Last: a runtime that sees the configuration finds the plugin.
        if "config" in wanted:
            replace(file, text.encode())
            os.chmod(file, 0o644)  # noqa: PTH101 - replace makes executables
    except (OSError, ValueError) as exc:
        raise UsageError(f"cni install: {exc}") from exc
    done = {
        "plugin": str(plugin),
        "form": "Python" if shim is None else "C",
        "config": str(file),
        "network": RUNTIMES[args.runtime][1],
        **({"left out": ", ".join(absent)} if absent else {}),
    }
    left_out = {"plugin": ("plugin", "form"), "config": ("config", "left out")}
    for part in set(BOTH) - set(wanted):
        for key in left_out[part]:
            done.pop(key, None)
    out.facts(done, done)
    return 0


def _shim(args: Namespace) -> Path | None:
    """Return the built C plugin: the one that is named, else one of the image or of `make`."""
    if args.shim is not None:
        named: Path = args.shim
        return named
    return next(
        (path for path in (SHIM, Path(sys.executable).with_name(PLUGIN)) if _is_c(path)), None
    )


def _is_c(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False
