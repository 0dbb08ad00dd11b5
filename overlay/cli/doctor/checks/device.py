"""Whether the tunnel's devices are up, and as large as the underlay allows."""

from collections.abc import Iterator
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error, named, warning
from overlay.model.address import family_of
from overlay.model.kernel import Rule
from overlay.model.node import POD_LINK_PREFIX


def _up(facts: Facts) -> Iterator[Verdict]:
    fabric, links = facts.fabric(), facts.links()
    for device in fabric.devices:
        under = links.get(device.underlay)
        found = links.get(device.name)
        if found is not None and not found.is_up:
            yield error(f"{device.name} is down", f"ip link set {device.name} up")
        elif not device.is_up:
            reason = f"{device.name} learns addresses by itself, from whoever sends"
            yield error(reason, "systemctl restart overlayd")
        elif under is None:
            reason = f"the interface that {device.name} sent through is gone"
            yield error(reason, "systemctl restart overlayd")
        elif not under.is_up:
            reason = f"{under.name}, which {device.name} sends through, is down"
            yield error(reason, f"ip link set {quote(under.name)} up")
        else:
            yield Fine(f"{device.name} over {under.name} is up")
    if fabric.is_there and not fabric.devices and any(isinstance(o, Rule) for o in fabric.objects):
        yield error("the tunnel's device is gone, its rule is there", "systemctl restart overlayd")


def _mtu(facts: Facts) -> Iterator[Verdict]:
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


UP: Final = Check("device", "the VXLAN devices and the interfaces below them", _up)
MTU: Final = Check("mtu", "MTU of devices and pods against the underlay's", _mtu)
