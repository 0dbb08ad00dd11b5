"""Whether packets between pods on a bridge pass the firewall, as Services need it.

The answer of a pod on the same bridge would go back without its address being
translated, and the connection hangs (flannel#2068).
"""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, warning
from overlay.kernel import sysctl
from overlay.model.address import Family
from overlay.model.node import POD_LINK_PREFIX

_SWITCH: Final = {
    Family.IPV4: "net/bridge/bridge-nf-call-iptables",
    Family.IPV6: "net/bridge/bridge-nf-call-ip6tables",
}


def _run(facts: Facts) -> Iterator[Verdict]:
    bridges = _pod_bridges(facts)
    if not bridges:
        yield Fine("no pods on a bridge")
        return
    shown = ", ".join(bridges)
    for family in facts.fabric().families:
        name = _SWITCH[family]
        value = sysctl.read(name)
        if value == "1":
            yield Fine(f"{name} = 1, pods on {shown}")
            continue
        seen = "br_netfilter is not loaded" if value is None else f"{name} = {value}"
        reason = f"pods are on {shown} and {seen}: a Service that leads back to its bridge hangs"
        yield warning(reason, f"modprobe br_netfilter; sysctl -w {name}=1")


def _pod_bridges(facts: Facts) -> list[str]:
    """Return the bridges of our own, and those with an address of the pod network."""
    networks = facts.fabric().networks
    return [
        name
        for name, link in facts.links().items()
        if link.kind == "bridge"
        and (
            name.startswith(POD_LINK_PREFIX)
            or any(
                address.version == network.version and address.ip in network
                for address in facts.addresses().get(link.index, ())
                for network in networks
            )
        )
    ]


CHECK: Final = Check("br-netfilter", "bridge-nf-call-*, where pods are on a bridge", _run)
