"""Whether full tunnel packets reach every peer, fragmented nowhere."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Unknown, Verdict, error, named
from overlay.kernel.host.path_mtu import largest_packets
from overlay.model.address import IPAddress, family_of
from overlay.model.kernel import VxlanLink

_WAIT_S: Final = 1.0


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    if not fabric.devices:
        yield Fine("no tunnel")
        return
    most = max(family_of(device.local).encapsulation_overhead for device in fabric.devices)
    for device in fabric.devices:
        peers = [peer for peer in fabric.peers if family_of(peer) is family_of(device.local)]
        yield from _judge(device, peers, most)


def _judge(device: VxlanLink, peers: list[IPAddress], most: int) -> Iterator[Verdict]:
    """Yield what is known of the ways of one device; ``most`` is the largest overhead of any."""
    overhead = family_of(device.local).encapsulation_overhead
    size = device.mtu + overhead
    narrow: dict[int, list[IPAddress]] = defaultdict(list)
    for peer, passes in largest_packets(peers, size, wait_s=_WAIT_S).items():
        narrow[passes].append(peer)
    silent = narrow.pop(0, [])
    wide = narrow.pop(size, [])
    for passes, some in sorted(narrow.items()):
        option = f".Backend.MTU = {passes - most}"
        yield error(
            f"packets of {size} bytes ({device.name}'s MTU {device.mtu} + {overhead}) do not reach "
            f"{named(some)}; {passes} do: large transfers hang",
            f"overlayctl network show -o json | jq '{option}' | overlayctl network init -",
        )
    if silent:
        yield Unknown(f"{len(silent)} of {len(peers)} peers answer no echo: {named(silent)}")
    if wide:
        yield Fine(f"{size} bytes reach {len(wide)} peers")


CHECK: Final = Check("path-mtu", "the way to every peer, by ICMP echo", _run, Scope.PEERS)
