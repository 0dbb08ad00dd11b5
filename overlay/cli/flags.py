"""The flags that every command takes, before or after its name, and their variables.

A flag wins over its variable ``OVERLAYCTL_FLAG_NAME``, that over the default.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from overlay.cli.out import FORMATS, Output
from overlay.model.document import is_plain
from overlay.model.errors import UsageError, usage_text
from overlay.store.base import LeaseStore
from overlay.store.etcd_config import DEFAULT_ENDPOINT, DEFAULT_PREFIX, EtcdConfig
from overlay.store.kube_config import ACCOUNT_DIR, ANNOTATION_PREFIX, NET_CONFIG_PATH, KubeAccess

DEFAULT_SOCKET: Final = "/run/overlay/cni.sock"
_VARIABLE: Final = "OVERLAYCTL_"
_KUBE: Final = "kube-subnet-mgr"

StoreConfig: TypeAlias = EtcdConfig | KubeAccess


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    default: str
    text: str

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return _VARIABLE + self.attribute.upper()


_COMMON: Final = (
    _Flag("output", "table", f"form of the output: {', '.join(FORMATS)}"),
    _Flag("socket", DEFAULT_SOCKET, "this node's agent"),
    _Flag("etcd-endpoints", DEFAULT_ENDPOINT, "etcd's URLs, separated by commas"),
    _Flag("etcd-prefix", DEFAULT_PREFIX, "where the network lies in etcd"),
    _Flag("etcd-cafile", "", "certificate authority of etcd"),
    _Flag("etcd-certfile", "", "client certificate"),
    _Flag("etcd-keyfile", "", "the client certificate's key"),
    _Flag("etcd-username", "", "user, where etcd asks for one"),
    _Flag("etcd-password", "", "password; better as OVERLAYCTL_ETCD_PASSWORD, which `ps` hides"),
    _Flag(_KUBE, "false", "leases are in the Kubernetes API, not in etcd"),
    _Flag("kubeconfig-file", "", "way into the Kubernetes API (default: the pod's account)"),
    _Flag("kube-api-url", "", "URL of the API server"),
    _Flag("kube-account-dir", str(ACCOUNT_DIR), "where the pod's account is mounted"),
    _Flag("kube-annotation-prefix", ANNOTATION_PREFIX, "what the nodes' annotations begin with"),
    _Flag("kube-namespace", "", "where the fabric's key is a Secret (default: the account's)"),
    _Flag("net-config-path", str(NET_CONFIG_PATH), "file with the network config of Kubernetes"),
)


class Parser(argparse.ArgumentParser):
    """A parser that takes the common flags, as do all parsers made by its ``add_subparsers``.

    They default to nothing at all, so that what stands before a subcommand is
    not overwritten by what does not stand behind it. Raises UsageError.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("conflict_handler", "resolve")
        super().__init__(**options)
        is_top = " " not in self.prog
        group = self.add_argument_group("common flags (each also as OVERLAYCTL_FLAG_NAME)")
        for flag in _COMMON:
            names = ["-o", "--output"] if flag.name == "output" else [f"--{flag.name}"]
            shown = flag.text + (f" ({flag.default})" if flag.default else "")
            is_shown = is_top or flag.name == "output"
            more: dict[str, Any] = {"nargs": "?", "const": "true"} if flag.name == _KUBE else {}
            group.add_argument(
                *names,
                default=argparse.SUPPRESS,
                help=shown if is_shown else argparse.SUPPRESS,
                metavar=flag.name.rpartition("-")[2].upper(),
                **more,
            )

    def error(self, message: str) -> NoReturn:
        """Raise UsageError: one line, as for every other error."""
        raise UsageError(f"{usage_text(message)}; see `{self.prog} --help`")


def takes_value(word: str) -> bool:
    """Return whether ``word`` is a common flag whose value is the next word.

    >>> takes_value("--socket"), takes_value("--socket=/run/a"), takes_value("--help")
    (True, False, False)
    """
    return word == "-o" or word.removeprefix("--") in {flag.name for flag in _COMMON}


def resolve(args: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Fill in the common flags that the command line left out. Raises UsageError."""
    for flag in _COMMON:
        if not hasattr(args, flag.attribute):
            setattr(args, flag.attribute, environment.get(flag.variable, flag.default))
        if not is_plain(getattr(args, flag.attribute)):
            raise UsageError(f"--{flag.name}: not UTF-8 text, or a NUL byte in it")
    if args.output not in FORMATS:
        raise UsageError(f"--output {args.output!r}: use {', '.join(FORMATS)}")


def etcd_config(args: argparse.Namespace) -> EtcdConfig:
    """Return how to reach etcd. Raises UsageError naming the flag at fault."""
    return EtcdConfig(
        endpoints=tuple(e.strip() for e in args.etcd_endpoints.split(",") if e.strip()),
        prefix=args.etcd_prefix,
        cafile=args.etcd_cafile or None,
        certfile=args.etcd_certfile or None,
        keyfile=args.etcd_keyfile or None,
        username=args.etcd_username or None,
        password=args.etcd_password or None,
    )


def store_config(args: argparse.Namespace) -> StoreConfig:
    """Return how to reach the store that the flags name. Raises UsageError naming the flag."""
    if args.kube_subnet_mgr.lower() not in {"true", "false", "1", "0"}:
        raise UsageError(f"--{_KUBE} {args.kube_subnet_mgr[:40]!r}: write true or false")
    if args.kube_subnet_mgr.lower() in {"false", "0"}:
        return etcd_config(args)
    return KubeAccess(
        kubeconfig=args.kubeconfig_file or None,
        api_url=args.kube_api_url or None,
        account_dir=Path(args.kube_account_dir),
        net_config_path=Path(args.net_config_path),
        annotation_prefix=args.kube_annotation_prefix,
        namespace=args.kube_namespace,
    )


def socket_path(args: argparse.Namespace) -> Path:
    """Return where this node's agent listens."""
    return Path(args.socket)


def with_output(
    command: Callable[[argparse.Namespace, Output], int],
) -> Callable[[argparse.Namespace], int]:
    """Return the command as ``main`` calls it: with the output that the flags ask for."""
    return lambda args: command(args, Output(args.output))


def with_store(
    command: Callable[[argparse.Namespace, LeaseStore, Output], int],
) -> Callable[[argparse.Namespace], int]:
    """Return the command as ``main`` calls it: the store is opened, and closed whatever happens."""

    def run(args: argparse.Namespace) -> int:
        store: LeaseStore = args.open_store(store_config(args))
        try:
            return command(args, store, Output(args.output))
        finally:
            store.close()

    return run
