"""Whether the kernel forwards between pods and the tunnel."""

from collections.abc import Iterator
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, named
from overlay.kernel import sysctl
from overlay.model.address import Family
from overlay.model.node import POD_LINK_PREFIX

_SWITCH: Final = {
    Family.IPV4: "net/ipv4/ip_forward",
    Family.IPV6: "net/ipv6/conf/all/forwarding",
}
_LINK: Final = "net/ipv4/conf/{}/forwarding"


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    if not fabric.is_there:
        yield Fine("overlayd sets it when it starts")
        return
    for family in fabric.families:
        name = _SWITCH[family]
        if sysctl.read(name) == "0":
            reason = f"{name} = 0: packets between pods and other nodes are dropped"
            yield error(reason, f"sysctl -w {name}=1")
        elif family is Family.IPV4:
            yield from _links(facts)
        else:
            yield Fine(f"{name} = {sysctl.read(name)}")


def _links(facts: Facts) -> Iterator[Verdict]:
    """Judge each link: ip_forward, written, sets them all; somebody may take it from one."""
    fabric = facts.fabric()
    links = [*(device.name for device in fabric.devices), *fabric.underlays]
    links += [name for name in facts.links() if name.startswith(POD_LINK_PREFIX)]
    off = [link for link in links if sysctl.read(_LINK.format(link)) == "0"]
    if off:
        reason = f"{named(_LINK.format(link) for link in off)} = 0: what comes in there is dropped"
        mend = " ".join(quote(f"{_LINK.format(link)}=1") for link in off)
        yield error(reason, f"sysctl -w {mend}")
    else:
        yield Fine(f"{_SWITCH[Family.IPV4]} = 1, and so for {len(links)} links of the fabric")


CHECK: Final = Check("forwarding", "the forwarding sysctls, of all links and of ours", _run)
