"""``network init``, ``show`` and ``validate``: the fabric's config."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from overlay.cli.flags import Parser, store_config, with_output, with_store
from overlay.cli.out import Output
from overlay.model.address import FAMILIES
from overlay.model.errors import OverlayError, UsageError
from overlay.model.network import NetworkConfig, format_network_config, parse_network_config
from overlay.model.node import NodeIdentity
from overlay.plan.registry import load_backend
from overlay.store.base import KEY_OVERLAP_S, LeaseStore
from overlay.store.kube_config import KubeAccess

_NOBODY = NodeIdentity("overlayctl", "overlayctl")  # a backend wants a node to check its options


class NoNetworkError(OverlayError):
    """The store holds no network config, or one that cannot be read."""


def add_parser(commands: Any) -> None:
    """Add ``network`` and its subcommands."""
    about = "the network config: write, show, check"
    network: Parser = commands.add_parser("network", help=about, description=about)
    verbs = network.add_subparsers(required=True, metavar="COMMAND", dest="verb")
    about = "check a config and write it; refused when it would break live leases"
    init = verbs.add_parser("init", help=about, description=about)
    init.add_argument("file", metavar="FILE", help="the config as JSON; - reads standard input")
    init.add_argument("--force", action="store_true", help="write it although leases break")
    init.set_defaults(run=with_store(init_network))
    about = "show the config with every default written out"
    show = verbs.add_parser("show", help=about, description=about)
    show.set_defaults(run=with_store(show_network))
    about = "check a config without a store"
    validate = verbs.add_parser("validate", help=about, description=about)
    validate.add_argument("file", metavar="FILE", help="the config as JSON; - reads standard input")
    validate.set_defaults(run=with_output(validate_network))
    about = "a new key for what agents ask one another; the old one counts for a minute more"
    rotate = verbs.add_parser("rotate-key", help=about, description=about)
    rotate.set_defaults(run=with_store(rotate_key))


def init_network(args: Namespace, store: LeaseStore, out: Output) -> int:
    """Write a config. Raises ConfigError, and ConfigConflictError unless ``--force``."""
    text = _read(args.file)
    _checked(text)
    _show(store.write_config(text, force=args.force), out)
    return 0


def show_network(args: Namespace, store: LeaseStore, out: Output) -> int:
    """Print the config. Raises NoNetworkError where there is none to read."""
    view = store.view()
    if view.config is None:
        config = store_config(args)
        if isinstance(config, KubeAccess):
            place, write = str(config.net_config_path), "mount it there from a config map"
        else:
            place = f"{config.prefix.rstrip('/')}/config"
            write = "write one with `overlayctl network init FILE`"
        if view.config_error is not None:
            msg = f"{place} cannot be read: {view.config_error}"
        else:
            msg = f"no network config at {place}; {write}"
        raise NoNetworkError(msg)
    _show(view.config, out)
    return 0


def validate_network(args: Namespace, out: Output) -> int:
    """Print what a config means. Raises ConfigError."""
    _show(_checked(_read(args.file)), out)
    return 0


def rotate_key(_args: Namespace, store: LeaseStore, out: Output) -> int:
    """Write a new key of the fabric, which is not shown. Raises ConfigConflictError."""
    store.rotate_fabric_key()
    said = f"new; the one before counts for {KEY_OVERLAP_S} s more"
    out.facts({"fabric key": said}, {"rotated": True, "overlap_s": KEY_OVERLAP_S})
    return 0


def _checked(text: str) -> NetworkConfig:
    """Return the config, its backend's options checked by the backend itself."""
    config = parse_network_config(text)
    load_backend(config, _NOBODY)
    return config


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as exc:
        msg = f"{name}: {exc.strerror}"
        raise UsageError(msg) from exc
    except UnicodeDecodeError as exc:
        msg = f"{name}: not UTF-8 text; the config is JSON"
        raise UsageError(msg) from exc


def _show(config: NetworkConfig, out: Output) -> None:
    facts: dict[str, object] = {}
    for family in FAMILIES:
        span = config.ranges.get(family)
        if span is not None:
            facts[str(family)] = (
                f"{span.network}, {span.count} subnets /{span.prefixlen} "
                f"from {span.first} to {span.last}"
            )
    options = [f"{key}={json.dumps(value)}" for key, value in config.backend.options.items()]
    facts["backend"] = [config.backend.type, *options]
    facts["egress"] = config.egress.mode.value
    if config.egress.non_masquerade:
        facts["not masqueraded"] = [str(network) for network in config.egress.non_masquerade]
    out.facts(facts, json.loads(format_network_config(config)))
