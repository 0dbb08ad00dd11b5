"""The flags of ``overlayd``: flannel's names where flannel has the flag.

Each flag can also be set as ``OVERLAYD_FLAG_NAME``; the command line wins.
Flannel's single-dash spelling is taken too.
"""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from overlay.agent.conflist import CniFlags
from overlay.agent.flag_parser import LOG_FORMATS, LOG_LEVELS, ON_OFF, VARIABLE, flag_parser
from overlay.agent.identity import node_identity
from overlay.agent.kube_flags import KubeFlags, kube_flags
from overlay.agent.mesh_flags import MeshFlags
from overlay.agent.policy_flags import PolicyFlags
from overlay.ipam.spans import Span
from overlay.kernel.host import offload
from overlay.kernel.underlay import UnderlayFlags
from overlay.model.address import IPAddress
from overlay.model.document import is_plain
from overlay.model.errors import UsageError
from overlay.model.node import NodeIdentity
from overlay.plan.prune import PruneLimit
from overlay.store.etcd_config import EtcdConfig

_SHORTEST_LEASE_S: Final = 1  # etcd counts in seconds
_SHORTEST_PROBE_S: Final = 1  # 100 peers, two ways: 200 datagrams a second


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


def parse_flags(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Flags:
    """Return the flags in ``argv`` and ``environment``. Raises UsageError in one line."""
    _refuse_odd_bytes(argv, environment)
    parser = flag_parser(environment)
    args = parser.parse_args([_double_dash(a) for a in argv])
    _refuse_odd_values(args)
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
        node=node_identity(kube.access.node_name if kube is not None else args.node_name),
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


def _refuse_odd_values(args: argparse.Namespace) -> None:
    """Raise UsageError for what no flag's own type refuses."""
    for name, value, choices in (
        ("log-format", args.log_format, LOG_FORMATS),
        ("log-level", args.log_level, LOG_LEVELS),
        ("network-policy", args.network_policy, ON_OFF),
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


def _refuse_odd_bytes(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise UsageError for what no file, no etcd key and no host can be called."""
    # By its place alone: it may be a password.
    given = [(f"argument {place}", argument) for place, argument in enumerate(argv, 1)]
    given += [(name, v) for name, v in environment.items() if name.startswith(VARIABLE)]
    for name, value in given:
        if not is_plain(value):
            raise UsageError(f"{name}: not UTF-8 text, or a NUL byte in it")


def _double_dash(argument: str) -> str:
    """Return flannel's ``-etcd-endpoints`` as ``--etcd-endpoints``; ``-h`` stays."""
    if re.match(r"-[a-z][a-z0-9-]+(=|\Z)", argument):
        return f"-{argument}"
    return argument
