"""``cni install``: the plugin and a network configuration where the runtime looks for them."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from overlay.cli.flags import DEFAULT_SOCKET, Parser, socket_path, with_output
from overlay.cli.out import Output
from overlay.model.errors import UsageError

VERSION: Final = "1.0.0"  # containerd 1.6 and podman 4.3 take no newer one as the first
VERSIONS: Final = ("0.4.0", "1.0.0", "1.1.0")
_PORTMAP: Final = {"type": "portmap", "capabilities": {"portMappings": True}}
# What a runtime may pass on from its user. Not from a kubelet, whose ranges are
# its own node's podCIDR and no lease.
_BY_USER: Final = ("containerd", "podman")
_CAPABILITIES: Final = {"ips": True, "mac": True, "ipRanges": True}
# File name, network name, plugins chained behind ours.
RUNTIMES: Final[dict[str, tuple[str, str, tuple[dict[str, Any], ...]]]] = {
    "kubernetes": ("10-overlay.conflist", "overlay", (_PORTMAP,)),
    "containerd": ("20-overlay-containerd.conflist", "overlay-containerd", ()),
    "podman": ("30-overlay-podman.conflist", "overlay-podman", (_PORTMAP,)),
}


def add_parser(commands: Any) -> None:
    """Add the group."""
    about = "the CNI plugin on this host"
    group: Parser = commands.add_parser("cni", help=about, description=about)
    verbs = group.add_subparsers(required=True, metavar="VERB", dest="verb")
    about = "put plugin and network configuration in place, each whole or not at all"
    verb: Parser = verbs.add_parser("install", help=about, description=about)
    verb.add_argument("--runtime", choices=sorted(RUNTIMES), default="kubernetes")
    verb.add_argument("--bin-dir", type=Path, default=Path("/opt/cni/bin"), metavar="DIR")
    verb.add_argument("--conf-dir", type=Path, default=Path("/etc/cni/net.d"), metavar="DIR")
    verb.add_argument("--shim", type=Path, metavar="FILE", help="the built C plugin")
    verb.set_defaults(run=with_output(install))


def conflist(runtime: str, socket: str = "") -> dict[str, Any]:
    """Return a runtime's network configuration list; ``socket`` only where it is another."""
    _file, name, chained = RUNTIMES[runtime]
    ours: dict[str, Any] = {"type": "overlay", **({"socket": socket} if socket else {})}
    if runtime in _BY_USER:
        ours["capabilities"] = dict(_CAPABILITIES)
    return {
        "cniVersion": VERSION,
        "cniVersions": list(VERSIONS),
        "name": name,
        "plugins": [ours, *chained],
    }


def install(args: Namespace, out: Output) -> int:
    """Install the plugin, then the configuration that names it. Repeating it is safe.

    Raises UsageError for a place that cannot be written.
    """
    from overlay_cni.install import install_plugin, install_shim, own_interpreter, replace

    plugin = args.bin_dir / "overlay"
    file = args.conf_dir / RUNTIMES[args.runtime][0]
    socket = "" if args.socket == DEFAULT_SOCKET else str(socket_path(args))
    text = json.dumps(conflist(args.runtime, socket), indent=2) + "\n"
    try:
        if args.shim is not None:
            install_shim(plugin, args.shim)
        else:
            install_plugin(plugin, own_interpreter())
        # Last: a runtime that sees the configuration finds the plugin.
        replace(file, text.encode())
        os.chmod(file, 0o644)  # noqa: PTH101 - replace makes executables
    except (OSError, ValueError) as exc:
        raise UsageError(f"cni install: {exc}") from exc
    done = {"plugin": str(plugin), "config": str(file), "network": RUNTIMES[args.runtime][1]}
    out.facts(done, done)
    return 0
