"""A node with the fabric's state in its kernel, as an agent leaves it, for checks of doctor."""

import subprocess
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

from overlay.cli.doctor.catalog import CHECKS
from overlay.cli.doctor.facts import Facts, gather
from overlay.cli.doctor.runner import Report, run_one
from overlay.cli.flags import resolve
from overlay.cli.main import open_named, parser
from overlay.kernel.netlink import NetlinkKernel
from overlay.kernel.nft_table import NftTable
from overlay.model.address import FAMILIES, Family
from overlay.model.lease import Lease, LeaseAttributes, Owner
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity, Underlay, vtep_mac
from overlay.model.subnet import parse_subnet
from overlay.plan.diff import diff
from overlay.plan.planner import Site, desired
from overlay.plan.registry import load_backend
from overlay.policy.egress import FirewallPlan, compile_ruleset
from overlay.policy.ruleset import hosts
from overlay.store.base import LeaseStore
from tests.kernel.netns import MakeNetns, Netns, veth

CONFIG = parse_network_config('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
BY_NAME = {check.name: check for check in CHECKS}


def lease(number: int, public: str = "") -> Lease:
    """Return the lease of node ``number``, 10.244.NUMBER.0/24 at 192.0.2.NUMBER."""
    node = f"n{number}"
    mac = vtep_mac(node, 1, Family.IPV4)
    return Lease(
        parse_subnet(f"10.244.{number % 256}.0/24"),
        LeaseAttributes(
            "vxlan",
            {Family.IPV4: ip_address(public or f"192.0.2.{number}")},
            {Family.IPV4: {"VNI": 1, "VtepMAC": mac}},
            Owner(node, node),
        ),
        create_revision=number,
        mod_revision=number,
    )


class Node:
    """``here`` (192.0.2.1) has a lease and one peer, ``far`` (192.0.2.2), behind eth0."""

    def __init__(self, make: MakeNetns, place: Path, peers: Mapping[str, Lease]) -> None:
        self.here, self.far, self.place = make(), make(), place
        veth(self.here, "eth0", self.far, "eth0")
        for number, netns in ((1, self.here), (2, self.far)):
            netns.ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
        self.here.sysctl("net/ipv4/ip_forward", 1)
        under = Underlay(
            "eth0",
            1500,
            {Family.IPV4: ip_interface("192.0.2.1/24")},
            {Family.IPV4: ip_address("192.0.2.1")},
        )
        backend = load_backend(CONFIG, NodeIdentity("n1", "n1"))
        wanted = desired(Site(CONFIG, backend, lease(1), under), peers).objects.values()

        peers_at = [at for each in peers.values() for at in each.attributes.public.values()]

        def program() -> None:
            kernel = NetlinkKernel()
            assert kernel.apply(diff(wanted, ())) == ()
            kernel.close()
            nodes = {family: hosts(peers_at, family) for family in FAMILIES}
            plan = FirewallPlan(lease(1).subnet, CONFIG, backend.tunnel, nodes)
            NftTable().apply(compile_ruleset(plan))

        self.here.call(program)

    def run(self, command: str) -> None:
        """Run a line of shell on the node. Raises AssertionError."""
        self.here.run("sh", "-c", command)

    def check(self, name: str, *flags: str) -> Report:
        """Return what one check says on the node."""
        return examine(self.here, name, f"--socket={self.place}/cni.sock", *flags)


def facts_of(*flags: str, store: LeaseStore | None = None) -> Facts:
    """Return the facts as the command line would ask for them; nothing is read yet.

    Without a ``store`` it is the one that the flags name.
    """
    args = parser().parse_args(["doctor", *flags])
    resolve(args, {})
    args.open_store = open_named if store is None else lambda _config: store
    return gather(args)


def examine(netns: Netns, name: str, *flags: str) -> Report:
    """Return what one check says in a namespace."""
    return netns.call(lambda: run_one(BY_NAME[name], facts_of(*flags)))


def said(report: Report) -> str:
    """Return all that the findings say."""
    return "\n".join(finding.reason for finding in report.findings)


def remedies(report: Report) -> list[str]:
    """Return the commands that would mend it."""
    return [finding.remedy for finding in report.findings]


def shell(command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a line of shell where the caller stands."""
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60, **options
    )
