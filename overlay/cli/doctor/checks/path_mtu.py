"""Whether full tunnel packets reach every peer, fragmented nowhere.

All are asked by ICMP echo, as they are now. A peer that answers no echo is taken
from the agent's last search, by datagrams of its own.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Unknown, Verdict, error, named
from overlay.model.address import IPAddress, family_of
from overlay.model.errors import OverlayError
from overlay.model.kernel import VxlanLink

_LATELY_S: Final = 1200.0  # two of the agent's usual intervals


def _run(facts: Facts) -> Iterator[Verdict]:
    fabric = facts.fabric()
    if not fabric.devices:
        yield Fine("no tunnel")
        return
    most = max(family_of(device.local).encapsulation_overhead for device in fabric.devices)
    for device in fabric.devices:
        peers = [peer for peer in fabric.peers if family_of(peer) is family_of(device.local)]
        yield from _judge(facts, device, peers, most)


def _measured(facts: Facts) -> Mapping[IPAddress, int]:
    """Return what the agent found lately, in bytes by public address."""
    try:
        found = facts.mtu()
    except OverlayError:
        return {}
    age_s = found.get("age_s")
    if found["error"] or not isinstance(age_s, int | float) or age_s > _LATELY_S:
        return {}
    return {
        ip_address(peer["public"]): min(peer["out"], peer["back"])
        for peer in found["peers"]
        if peer["out"] and peer["back"]
    }


def _judge(facts: Facts, device: VxlanLink, peers: list[IPAddress], most: int) -> Iterator[Verdict]:
    """Yield what is known of the ways of one device; ``most`` is the largest overhead of any."""
    overhead = family_of(device.local).encapsulation_overhead
    size = device.mtu + overhead
    found = facts.echoes(peers, size)
    measured = {} if all(found.values()) else _measured(facts)
    narrow: dict[int, list[IPAddress]] = defaultdict(list)
    for peer in peers:
        narrow[min(found[peer] or measured.get(peer, 0), size)].append(peer)
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


CHECK: Final = Check(
    "path-mtu", "the way to every peer, by ICMP echo and the agent's probes", _run, Scope.PEERS
)
