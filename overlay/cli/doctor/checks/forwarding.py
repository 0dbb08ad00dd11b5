"""Whether the kernel forwards between pods and the tunnel."""

from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error
from overlay.kernel import sysctl
from overlay.model.address import Family

_SWITCH: Final = {
    Family.IPV4: "net/ipv4/ip_forward",
    Family.IPV6: "net/ipv6/conf/all/forwarding",
}


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    if not fabric.is_there:
        yield Fine("overlayd sets it when it starts")
        return
    names = [_SWITCH[family] for family in fabric.families]
    if Family.IPV4 in fabric.families:
        # Writing ip_forward sets every link's; somebody may take it from one afterwards.
        links = [*(device.name for device in fabric.devices), *fabric.underlays]
        names += [f"net/ipv4/conf/{link}/forwarding" for link in links]
    off = [name for name in names if sysctl.read(name) == "0"]
    for name in off:
        reason = f"{name} = 0: packets between pods and other nodes are dropped"
        yield error(reason, f"sysctl -w {name}=1")
    if not off:
        yield Fine(", ".join(f"{name} = {sysctl.read(name)}" for name in names))


CHECK: Final = Check("forwarding", "the forwarding sysctls, of all links and of ours", _run)
