"""Whether the tunnel's devices are as large as the underlay allows, and pods no larger."""

from collections.abc import Iterator
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, named, warning
from overlay.model.address import family_of
from overlay.model.node import POD_LINK_PREFIX


def _run(facts: Facts) -> Iterator[Verdict]:
    links = facts.links()
    for device in facts.fabric().devices:
        overhead = family_of(device.local).encapsulation_overhead
        under = links.get(device.underlay)
        if under is None:
            continue
        most = under.mtu - overhead
        if device.mtu > most:
            yield error(
                f"{device.name} has MTU {device.mtu}, {device.mtu + overhead} with its headers, "
                f"but {under.name} carries {under.mtu}: large packets are lost or cut up",
                f"ip link set {device.name} mtu {most}",
            )
        else:
            yield Fine(f"{device.name} {device.mtu} + {overhead} <= {under.name} {under.mtu}")
        large = [
            link.name
            for link in links.values()
            if link.name.startswith(POD_LINK_PREFIX) and link.mtu > device.mtu
        ]
        if large:
            reason = f"MTU of {named(large)} is larger than {device.name}'s {device.mtu}"
            yield warning(
                f"{reason}: their large packets need an ICMP answer first; recreate these pods",
                f"ip link set {quote(large[0])} mtu {device.mtu}",
            )


CHECK: Final = Check("mtu", "MTU of devices and pods against the underlay's", _run)
