"""The flags of ``overlayd``: flannel's names where flannel has the flag.

Each flag can also be set as ``OVERLAYD_FLAG_NAME``; the command line wins.
Flannel's single-dash spelling is taken too.
"""

import argparse
import hashlib
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NoReturn

from overlay import __version__
from overlay.agent.conflist import CniFlags
from overlay.agent.kube_flags import KubeFlags, add_kube_flags, kube_flags
from overlay.agent.mesh import MeshFlags
from overlay.agent.policy_flags import LOG_GROUP, PolicyFlags
from overlay.ipam.spans import Span, parse_span
from overlay.kernel.base import KernelError
from overlay.kernel.host import offload
from overlay.kernel.netns import own_namespace
from overlay.kernel.underlay import UnderlayFlags
from overlay.model import duration
from overlay.model.address import Family, IPAddress, parse_node_address
from overlay.model.document import is_plain
from overlay.model.errors import UsageError, usage_text
from overlay.model.node import NodeIdentity
from overlay.plan.prune import PruneLimit, parse_limit
from overlay.store.etcd_config import EtcdConfig

_LOG_FORMATS: Final = ("text", "json")
_LOG_LEVELS: Final = ("debug", "info", "warning")
_ON_OFF: Final = ("on", "off")
_MACHINE_ID: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_VARIABLE: Final = "OVERLAYD_"
_SHORTEST_LEASE_S: Final = 1  # etcd counts in seconds
_SHORTEST_PROBE_S: Final = 1  # 100 peers, two ways: 200 datagrams a second
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Flags:
    """What ``overlayd`` was told."""

    etcd: EtcdConfig
    underlay: UnderlayFlags
    node: NodeIdentity
    subnet_file: Path
    state_dir: Path
    cni_socket: Path
    reserved: tuple[Span, ...]
    healthz_ip: IPAddress
    metrics_names: bool
    healthz_port: int
    lease_ttl_s: int
    renew_margin_s: int
    audit_interval_s: float
    log_format: str
    log_level: str
    prune_limit: PruneLimit
    mesh: MeshFlags
    cni: CniFlags = field(default_factory=CniFlags)
    policy: PolicyFlags = field(default_factory=PolicyFlags)
    checksum_offload: str = "auto"  # of the VXLAN devices: overlay.kernel.host.offload.CHOICES
    host_local_dir: Path = Path("/var/lib/cni/networks")
    replaces_flannel: bool = False  # where its device has our VNI and port
    waits_for_host: bool = False  # for what a person would be told by an end
    kube: KubeFlags | None = None  # leases from the Kubernetes API instead of etcd

    @property
    def no_config(self) -> str:
        """Return what to do where there is no network config."""
        if self.kube is not None:
            return (
                f"{self.kube.access.net_config_path} does not exist; mount the config map with the "
                "network config there, or name its file with --net-config-path"
            )
        return (
            f"{self.etcd.prefix}/config does not exist; write it with "
            "`overlayctl network init FILE`"
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{usage_text(message)}; `overlayd --help` lists the flags")


def parse_flags(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Flags:
    """Return the flags in ``argv`` and ``environment``. Raises UsageError in one line."""
    _refuse_odd_bytes(argv, environment)
    parser = flag_parser(environment)
    args = parser.parse_args([_double_dash(a) for a in argv])
    for name, value, choices in (
        ("log-format", args.log_format, _LOG_FORMATS),
        ("log-level", args.log_level, _LOG_LEVELS),
        ("network-policy", args.network_policy, _ON_OFF),
        ("vxlan-checksum-offload", args.vxlan_checksum_offload, offload.CHOICES),
    ):
        if value not in choices:  # argparse does not look at what comes from the environment
            raise UsageError(f"--{name} {value[:40]!r}: use {', '.join(choices)}")
    if args.probe_interval < _SHORTEST_PROBE_S:
        raise UsageError(
            f"--probe-interval {args.probe_interval:g} s: probe no more often than every "
            f"{_SHORTEST_PROBE_S} s; --probe-port 0 turns it off"
        )
    if args.subnet_lease_ttl < _SHORTEST_LEASE_S:
        raise UsageError(
            f"--subnet-lease-ttl {args.subnet_lease_ttl:g} s: a lease lasts at least "
            f"{_SHORTEST_LEASE_S} s"
        )
    if args.subnet_lease_renew_margin >= args.subnet_lease_ttl:
        raise UsageError(
            f"--subnet-lease-renew-margin {args.subnet_lease_renew_margin:g} s is not less than "
            f"--subnet-lease-ttl {args.subnet_lease_ttl:g} s; the lease would never be renewed"
        )
    kube = kube_flags(args, environment) if args.kube_subnet_mgr else None
    return Flags(
        etcd=EtcdConfig(
            endpoints=tuple(e.strip() for e in args.etcd_endpoints.split(",") if e.strip()),
            prefix=args.etcd_prefix,
            cafile=args.etcd_cafile or None,
            certfile=args.etcd_certfile or None,
            keyfile=args.etcd_keyfile or None,
            username=args.etcd_username or None,
            password=args.etcd_password or None,
        ),
        underlay=UnderlayFlags(
            iface=tuple(args.iface),
            iface_regex=tuple(args.iface_regex),
            iface_can_reach=args.iface_can_reach,
            public_ip=args.public_ip,
            public_ipv6=args.public_ipv6,
        ),
        node=_identity(kube.access.node_name if kube is not None else args.node_name),
        subnet_file=args.subnet_file,
        state_dir=args.state_dir,
        cni_socket=args.cni_socket or args.state_dir / "cni.sock",
        reserved=args.reserve_addresses,
        host_local_dir=args.host_local_dir,
        replaces_flannel=args.replace_flannel,
        healthz_ip=args.healthz_ip,
        metrics_names=args.metrics_names,
        healthz_port=args.healthz_port,
        lease_ttl_s=int(args.subnet_lease_ttl),
        renew_margin_s=int(args.subnet_lease_renew_margin),
        audit_interval_s=args.audit_interval,
        log_format=args.log_format,
        log_level=args.log_level,
        prune_limit=replace(args.max_prune, delay_s=args.prune_delay),
        mesh=MeshFlags(
            args.probe_port, args.probe_interval, args.pmtu_interval, bool(args.pmtu_clamp)
        ),
        cni=CniFlags(args.cni_conf_dir, args.cni_bin_dir),
        waits_for_host=bool(args.wait_for_host),
        kube=kube,
        checksum_offload=args.vxlan_checksum_offload,
        policy=PolicyFlags(
            args.network_policy == "on",
            bool(args.policy_keep_established),
            args.policy_log_group,
            bool(args.policy_admin_tier),
        ),
    )


def _refuse_odd_bytes(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise UsageError for what no file, no etcd key and no host can be called."""
    # By its place alone: it may be a password.
    given = [(f"argument {place}", argument) for place, argument in enumerate(argv, 1)]
    given += [(name, v) for name, v in environment.items() if name.startswith(_VARIABLE)]
    for name, value in given:
        if not is_plain(value):
            raise UsageError(f"{name}: not UTF-8 text, or a NUL byte in it")


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as ``90s``, ``1h30m`` or ``24h``.

    >>> parse_duration("1h30m")
    5400.0
    """
    try:
        return duration.parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _parse_margin(text: str) -> float:
    """Return seconds; a bare number counts minutes, as in flannel."""
    return parse_duration(f"{text}m" if text.isdigit() else text)


def _double_dash(argument: str) -> str:
    """Return flannel's ``-etcd-endpoints`` as ``--etcd-endpoints``; ``-h`` stays."""
    if re.match(r"-[a-z][a-z0-9-]+(=|\Z)", argument):
        return f"-{argument}"
    return argument


def _address(family: Family | None) -> Callable[[str], IPAddress]:
    def parse(text: str) -> IPAddress:
        try:
            return parse_node_address(text, family)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return parse


def _limit(text: str) -> PruneLimit:
    try:
        return parse_limit(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _any_address(text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _spans(text: str) -> tuple[Span, ...]:
    try:
        return tuple(parse_span(part) for part in text.split(",") if part.strip())
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{exc}; write ADDRESS, PREFIX or FIRST-LAST") from exc


def _port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        msg = f"{text!r} is not a port; use 1 to 65535, or 0 for none"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false", "1", "0"}:
        msg = f"{text!r}: write true or false"
        raise argparse.ArgumentTypeError(msg)
    return text.lower() in {"true", "1"}


def _path(text: str) -> Path:
    if not text.startswith("/"):
        msg = f"{text!r} is not an absolute path"
        raise argparse.ArgumentTypeError(msg)
    return Path(text)


def flag_parser(environment: Mapping[str, str]) -> _Parser:  # one flag after the other
    """Return the parser of all flags; ``environment`` has their defaults."""
    parser = _Parser(
        prog="overlayd",
        description="Leases a pod subnet and keeps this node's part of the fabric.",
        epilog="Each flag can be set as OVERLAYD_FLAG_NAME; the command line wins.",
        allow_abbrev=False,
    )

    def flag(name: str, default: Any, text: str, **options: Any) -> None:
        """Add a flag whose default the environment can set; the same parser reads both."""
        value = environment.get(_VARIABLE + name.replace("-", "_").upper())
        if options.get("action") == "append":
            default = [] if value is None else [v for v in value.split(",") if v]
        elif value is not None:
            default = value
        parser.add_argument(f"--{name}", default=default, help=text, **options)

    parser.add_argument("--version", action="version", version=f"overlayd {__version__}")
    flag("etcd-endpoints", "http://127.0.0.1:2379", "etcd's URLs, separated by commas")
    flag("etcd-prefix", "/coreos.com/network", "where the network lies in etcd")
    flag("etcd-cafile", "", "certificate authority of etcd")
    flag("etcd-certfile", "", "client certificate")
    flag("etcd-keyfile", "", "the client certificate's key")
    flag("etcd-username", "", "user, where etcd asks for one")
    flag("etcd-password", "", "password; better as OVERLAYD_ETCD_PASSWORD, which `ps` hides")
    flag(
        "iface", None, "underlay by name or address; repeated: the first there is", action="append"
    )
    flag("iface-regex", None, "underlay by expression on name or address", action="append")
    flag("iface-can-reach", "", "underlay by the route to this address")
    flag(
        "public-ip", None, "IPv4 address that peers reach this node at", type=_address(Family.IPV4)
    )
    flag("public-ipv6", None, "the same for IPv6", type=_address(Family.IPV6))
    flag("subnet-file", Path("/run/overlay/subnet.env"), "flannel's subnet.env", type=_path)
    flag("subnet-lease-ttl", 86400.0, "how long a lease lasts (24h)", type=parse_duration)
    flag(
        "subnet-lease-renew-margin",
        3600.0,
        "renew this long before the end (60m; a bare number counts minutes)",
        type=_parse_margin,
    )
    flag("node-name", "", "this node's name and identity (default: hostname and machine id)")
    flag("state-dir", Path("/run/overlay"), "directory for state, root's alone", type=_path)
    flag("cni-socket", None, "socket for plugin and overlayctl (STATE_DIR/cni.sock)", type=_path)
    flag(
        "cni-conf-dir",
        None,
        "write 10-overlay.conflist there once ready (default: nowhere)",
        type=_path,
    )
    flag("cni-bin-dir", Path("/opt/cni/bin"), "where the runtime has its plugins", type=_path)
    flag(
        "reserve-addresses",
        "",
        "addresses that no pod gets unless it asks for them: 10.244.3.10,10.244.3.32/28,A-B",
        type=_spans,
    )
    flag(
        "host-local-dir",
        Path("/var/lib/cni/networks"),
        "addresses that the plugin host-local holds there are given to nobody",
        type=_path,
    )
    flag(
        "replace-flannel",
        False,  # noqa: FBT003
        "remove flannel's device where it has our VNI and port; stop flannel first",
        type=_boolean,
        nargs="?",
        const=True,
    )
    flag("healthz-ip", ip_address("127.0.0.1"), "address of the HTTP server", type=_any_address)
    flag("healthz-port", 9470, "its port; 0 for no server", type=_port)
    flag(
        "metrics-names",
        False,  # noqa: FBT003
        "name peers and policies in /metrics to others than this node too",
        type=_boolean,
        nargs="?",
        const=True,
    )
    flag("audit-interval", 60.0, "look at the whole kernel this often (60s)", type=parse_duration)
    flag("max-prune", "50%", "more peers that vanish together are held; off for none", type=_limit)
    flag("prune-delay", 60.0, "how long they are held (60s)", type=parse_duration)
    flag("probe-port", 9471, "UDP port that agents measure one another by; 0: off", type=_port)
    flag("probe-interval", 10.0, "probe each peer this often (10s)", type=parse_duration)
    flag("pmtu-interval", 600.0, "search for path MTUs this often (10m)", type=parse_duration)
    flag(
        "pmtu-clamp",
        False,  # noqa: FBT003
        "give devices the least path MTU that was found",
        type=_boolean,
        nargs="?",
        const=True,
    )
    flag(
        "vxlan-checksum-offload",
        "auto",
        "checksums left to the VXLAN device: auto (not where the kernel spoils them), on or off",
        choices=offload.CHOICES,
    )
    flag("network-policy", "on", "enforce network policies: on or off", choices=_ON_OFF)
    flag(
        "policy-keep-established",
        False,  # noqa: FBT003
        "leave connections alone that a new policy forbids",
        type=_boolean,
        nargs="?",
        const=True,
    )
    flag("policy-log-group", LOG_GROUP, "NFLOG group of denied packets; 0: none", type=_port)
    flag(
        "policy-admin-tier",
        False,  # noqa: FBT003
        "enforce ClusterNetworkPolicy too",
        type=_boolean,
        nargs="?",
        const=True,
    )
    flag(
        "wait-for-host",
        False,  # noqa: FBT003
        "wait, unready, for what is wrong with host or flags instead of ending; for a DaemonSet",
        type=_boolean,
        nargs="?",
        const=True,
    )
    flag("log-format", "text", "text or json", choices=_LOG_FORMATS)
    flag("log-level", "info", "debug, info or warning", choices=_LOG_LEVELS)
    add_kube_flags(flag, _boolean, _path)
    return parser


def _identity(node_name: str) -> NodeIdentity:
    if node_name:
        if not _NODE_NAME.match(node_name):
            raise UsageError(
                f"--node-name {node_name[:80]!r}: use letters, digits, dots and dashes only"
            )
        return NodeIdentity(node_name, node_name, _boot())
    name = socket.gethostname()
    for path in _MACHINE_ID:
        try:
            machine_id = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if re.fullmatch(r"[0-9a-f]{32}", machine_id):
            return NodeIdentity(machine_id, name, _boot())
    raise UsageError(
        "this host has no machine id (/etc/machine-id): make one with "
        "`systemd-machine-id-setup`, or name the node with --node-name"
    )


def _boot() -> str:
    """Return what tells this host from a clone of it until the next boot; empty where unknown.

    With the network namespace, since several nodes may live on one kernel.
    """
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        namespace = own_namespace()
    except (OSError, UnicodeDecodeError, KernelError):
        return ""
    seed = f"{boot_id}\0{namespace.device}\0{namespace.inode}".encode()
    return hashlib.sha256(seed).hexdigest()[:16]
