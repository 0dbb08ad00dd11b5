"""Whether the tunnel's devices are up, and what they send through."""

from collections.abc import Iterator
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Verdict, error
from overlay.model.kernel import Rule


def _run(facts: Facts) -> Iterator[Verdict]:
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


CHECK: Final = Check("device", "the VXLAN devices and the interfaces below them", _run)
