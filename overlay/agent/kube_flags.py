"""The flags of Kubernetes mode: flannel's names and defaults, and ours beside them."""

import argparse
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from overlay.store.kube_config import ACCOUNT_DIR, ANNOTATION_PREFIX, NET_CONFIG_PATH, KubeAccess


@dataclass(frozen=True, slots=True)
class KubeFlags:
    """What ``overlayd`` was told of Kubernetes; ``is_announced`` sets NetworkUnavailable."""

    access: KubeAccess
    is_announced: bool = True


def add_kube_flags(
    flag: Callable[..., None], switch: Callable[..., None], path: Callable[[str], Any]
) -> None:
    """Add the flags by ``flag`` and ``switch``; ``path`` parses values."""
    switch(
        "kube-subnet-mgr", "leases are the nodes' podCIDRs in the Kubernetes API; no etcd is asked"
    )
    flag("kubeconfig-file", "", "way into the Kubernetes API (default: the pod's account)")
    flag("kube-api-url", "", "URL of the API server (default: what account or file says)")
    flag("kube-annotation-prefix", ANNOTATION_PREFIX, "what the nodes' annotations begin with")
    flag("net-config-path", NET_CONFIG_PATH, "file with the network config", type=path)
    switch(
        "set-node-network-unavailable",
        "set this node's condition NetworkUnavailable to False once ready",
        default=True,
    )
    flag("kube-account-dir", ACCOUNT_DIR, "where the pod's account is mounted", type=path)
    flag("kube-namespace", "", "where the fabric's key is a Secret (default: the account's)")


def kube_flags(args: argparse.Namespace, environment: Mapping[str, str]) -> KubeFlags:
    """Return what the flags say; the node's name from NODE_NAME, else the host's.

    A kubelet calls its node by the host's name in lower case unless told
    otherwise. Raises UsageError naming the flag.
    """
    name = args.node_name or environment.get("NODE_NAME") or socket.gethostname().lower()
    access = KubeAccess(
        node_name=name,
        kubeconfig=args.kubeconfig_file or None,
        api_url=args.kube_api_url or None,
        account_dir=args.kube_account_dir,
        net_config_path=args.net_config_path,
        annotation_prefix=args.kube_annotation_prefix,
        namespace=args.kube_namespace,
    )
    return KubeFlags(access, bool(args.set_node_network_unavailable))
