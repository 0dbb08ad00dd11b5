"""What flannel left behind, or still does, on a node that has moved to overlay."""

import re
from collections.abc import Iterator
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Unknown, Verdict, error, warning
from overlay.kernel.base import KernelError
from overlay.kernel.host.daemons import running
from overlay.kernel.links import LinkInfo

_DEVICE: Final = re.compile(r"flannel(-v6)?[.-]")  # flannel.1, flannel-v6.1, flannel-wg
_BRIDGE: Final = "cni0"  # of flannel's CNI plugin
_TABLES: Final = re.compile(r"flannel-ipv[46]\Z")
_CHAINS: Final = frozenset({"FLANNEL-POSTRTG", "FLANNEL-FWD"})


def _run(facts: Facts) -> Iterator[Verdict]:
    found = [*_devices(facts), *_rules(facts)]
    yield from found or [Fine("nothing of flannel's")]


def _devices(facts: Facts) -> Iterator[Verdict]:
    try:
        if running({"flanneld"}):
            reason = "flanneld still runs: both want this node's lease and its routes"
            yield error(reason, "systemctl disable --now flanneld")
    except KernelError as exc:  # what it left behind is seen all the same
        yield Unknown(f"flanneld: {exc}")
    for name, link in facts.links().items():
        if _DEVICE.match(name):
            yield _device(facts, link)
        elif name == _BRIDGE and _is_strange(facts, link):
            yield warning(
                f"{name} has an address outside this node's subnet: flannel's plugin refuses to "
                "attach pods, and what it attached is not reached",
                f"ip link delete {name}",
            )


def _device(facts: Facts, link: LinkInfo) -> Verdict:
    ours = facts.fabric().devices
    vxlan = link.vxlan
    if vxlan is not None and not ours:
        twin = vxlan.port in facts.fabric().ports
    else:
        twin = vxlan is not None and any((d.vni, d.port) == (vxlan.vni, vxlan.port) for d in ours)
    remedy = f"ip link delete {quote(link.name)}"
    if twin:
        return error(f"{link.name} is left of flannel and has the VNI and port of ours", remedy)
    return warning(f"{link.name} is left of flannel: routes through it shadow ours", remedy)


def _is_strange(facts: Facts, link: LinkInfo) -> bool:
    fabric = facts.fabric()
    return bool(fabric.own) and any(
        any(address.version == n.version and address.ip in n for n in fabric.networks)
        and not any(address.version == n.version and address.ip in n for n in fabric.own)
        for address in facts.addresses().get(link.index, ())
    )


def _rules(facts: Facts) -> Iterator[Verdict]:
    told: set[str] = set()
    for family, table, name in facts.rules().chains:
        if _TABLES.match(table) and table not in told:
            told.add(table)
            reason = f"table {family} {table} is left of flannel: it masquerades pods"
            yield warning(reason, f"nft delete table {family} {table}")
        elif name in _CHAINS and name not in told:
            told.add(name)
            reason = (
                f"chain {family} {table} {name} is left of flannel: it masquerades or accepts for "
                "pods"
            )
            program = "iptables" if family == "ip" else "ip6tables"
            yield warning(
                reason,
                f"{program}-save -t {table} | grep -v FLANNEL- | {program}-restore",
            )


CHECK: Final = Check("flannel", "flanneld, its devices, cni0 and its rules", _run)
