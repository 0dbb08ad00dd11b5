"""Which flags ``overlayd`` has, what they are when not given, and what ``--help`` says of them."""

import argparse
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NoReturn

from overlay import __version__
from overlay.agent.flag_values import (
    parse_address,
    parse_any_address,
    parse_boolean,
    parse_duration,
    parse_margin,
    parse_path,
    parse_port,
    parse_prune_limit,
    parse_spans,
)
from overlay.agent.kube_flags import add_kube_flags
from overlay.agent.policy_flags import LOG_GROUP
from overlay.kernel.host import offload
from overlay.model.address import Family
from overlay.model.errors import UsageError, usage_text

VARIABLE: Final = "OVERLAYD_"  # what the environment's names for flags begin with
LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning")
ON_OFF: Final = ("on", "off")


class FlagParser(argparse.ArgumentParser):
    """Takes each flag's default from the environment, and raises UsageError instead of ending."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(
            prog="overlayd",
            description="Leases a pod subnet and keeps this node's part of the fabric.",
            epilog="Each flag can be set as OVERLAYD_FLAG_NAME; the command line wins.",
            allow_abbrev=False,
        )
        self._environment = environment

    def flag(self, name: str, default: Any, text: str, **options: Any) -> None:
        """Add a flag whose default the environment can set; the same parser reads both."""
        value = self._environment.get(VARIABLE + name.replace("-", "_").upper())
        if options.get("action") == "append":
            default = [] if value is None else [v for v in value.split(",") if v]
        elif value is not None:
            default = value
        self.add_argument(f"--{name}", default=default, help=text, **options)

    def switch(self, name: str, text: str, *, default: bool = False) -> None:
        """Add a flag that is on where it is given without a value."""
        self.flag(name, default, text, type=parse_boolean, nargs="?", const=True)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{usage_text(message)}; `overlayd --help` lists the flags")


def flag_parser(environment: Mapping[str, str]) -> FlagParser:
    """Return the parser of all flags; ``environment`` has their defaults."""
    parser = FlagParser(environment)
    parser.add_argument("--version", action="version", version=f"overlayd {__version__}")
    _add_store(parser)
    _add_underlay(parser)
    _add_lease(parser)
    _add_pods(parser)
    _add_watching(parser)
    _add_policy(parser)
    parser.switch(
        "wait-for-host",
        "wait, unready, for what is wrong with host or flags instead of ending; for a DaemonSet",
    )
    parser.flag("log-format", "text", "text or json", choices=LOG_FORMATS)
    parser.flag("log-level", "info", "debug, info or warning", choices=LOG_LEVELS)
    add_kube_flags(parser.flag, parser.switch, parse_path)
    return parser


def _add_store(parser: FlagParser) -> None:
    flag = parser.flag
    flag("etcd-endpoints", "http://127.0.0.1:2379", "etcd's URLs, separated by commas")
    flag("etcd-prefix", "/coreos.com/network", "where the network lies in etcd")
    flag("etcd-cafile", "", "certificate authority of etcd")
    flag("etcd-certfile", "", "client certificate")
    flag("etcd-keyfile", "", "the client certificate's key")
    flag("etcd-username", "", "user, where etcd asks for one")
    flag("etcd-password", "", "password; better as OVERLAYD_ETCD_PASSWORD, which `ps` hides")


def _add_underlay(parser: FlagParser) -> None:
    flag = parser.flag
    flag(
        "iface", None, "underlay by name or address; repeated: the first there is", action="append"
    )
    flag("iface-regex", None, "underlay by expression on name or address", action="append")
    flag("iface-can-reach", "", "underlay by the route to this address")
    ipv4, ipv6 = parse_address(Family.IPV4), parse_address(Family.IPV6)
    flag("public-ip", None, "IPv4 address that peers reach this node at", type=ipv4)
    flag("public-ipv6", None, "the same for IPv6", type=ipv6)


def _add_lease(parser: FlagParser) -> None:
    flag = parser.flag
    flag("subnet-file", Path("/run/overlay/subnet.env"), "flannel's subnet.env", type=parse_path)
    flag("subnet-lease-ttl", 86400.0, "how long a lease lasts (24h)", type=parse_duration)
    flag(
        "subnet-lease-renew-margin",
        3600.0,
        "renew this long before the end (60m; a bare number counts minutes)",
        type=parse_margin,
    )
    flag("node-name", "", "this node's name and identity (default: hostname and machine id)")
    flag("state-dir", Path("/run/overlay"), "directory for state, root's alone", type=parse_path)


def _add_pods(parser: FlagParser) -> None:
    flag = parser.flag
    flag(
        "cni-socket", None, "socket for plugin and overlayctl (STATE_DIR/cni.sock)", type=parse_path
    )
    flag(
        "cni-conf-dir",
        None,
        "write 10-overlay.conflist there once ready (default: nowhere)",
        type=parse_path,
    )
    flag("cni-bin-dir", Path("/opt/cni/bin"), "where the runtime has its plugins", type=parse_path)
    flag(
        "reserve-addresses",
        "",
        "addresses that no pod gets unless it asks for them: 10.244.3.10,10.244.3.32/28,A-B",
        type=parse_spans,
    )
    flag(
        "host-local-dir",
        Path("/var/lib/cni/networks"),
        "addresses that the plugin host-local holds there are given to nobody",
        type=parse_path,
    )
    parser.switch(
        "replace-flannel",
        "remove flannel's device where it has our VNI and port; stop flannel first",
    )


def _add_watching(parser: FlagParser) -> None:
    flag = parser.flag
    loopback = ip_address("127.0.0.1")
    flag("healthz-ip", loopback, "address of the HTTP server", type=parse_any_address)
    flag("healthz-port", 9470, "its port; 0 for no server", type=parse_port)
    parser.switch(
        "metrics-names", "name peers and policies in /metrics to others than this node too"
    )
    flag("audit-interval", 60.0, "look at the whole kernel this often (60s)", type=parse_duration)
    limit = parse_prune_limit
    flag("max-prune", "50%", "more peers that vanish together are held; off for none", type=limit)
    flag("prune-delay", 60.0, "how long they are held (60s)", type=parse_duration)
    port = parse_port
    flag("probe-port", 9471, "UDP port that agents measure one another by; 0: off", type=port)
    flag("probe-interval", 10.0, "probe each peer this often (10s)", type=parse_duration)
    flag("pmtu-interval", 600.0, "search for path MTUs this often (10m)", type=parse_duration)
    parser.switch("pmtu-clamp", "give devices the least path MTU that was found")
    flag(
        "vxlan-checksum-offload",
        "auto",
        "checksums left to the VXLAN device: auto (not where the kernel spoils them), on or off",
        choices=offload.CHOICES,
    )


def _add_policy(parser: FlagParser) -> None:
    parser.flag("network-policy", "on", "enforce network policies: on or off", choices=ON_OFF)
    parser.switch("policy-keep-established", "leave connections alone that a new policy forbids")
    parser.flag(
        "policy-log-group", LOG_GROUP, "NFLOG group of denied packets; 0: none", type=parse_port
    )
    parser.switch("policy-admin-tier", "enforce ClusterNetworkPolicy too")
