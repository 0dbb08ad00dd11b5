"""Whether full tunnel packets reach every peer, fragmented nowhere.

What the agent has just measured is taken as it is; all else is asked by ICMP
echo. A peer that answers no echo is taken from the agent's last search, too.
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

_FRESH_S: Final = 60.0  # a path may have changed since
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


def _measured(facts: Facts) -> tuple[Mapping[IPAddress, int], float]:
    """Return what the agent found, in bytes by public address, and how many seconds ago."""
    try:
        found = facts.mtu()
    except OverlayError:
        return {}, 0.0
    age_s = found.get("age_s")
    if found["error"] or not isinstance(age_s, int | float) or age_s > _LATELY_S:
        return {}, 0.0
    sizes = {
        ip_address(peer["public"]): min(peer["out"], peer["back"])
        for peer in found["peers"]
        if peer["out"] and peer["back"]
    }
    return sizes, float(age_s)


def _judge(facts: Facts, device: VxlanLink, peers: list[IPAddress], most: int) -> Iterator[Verdict]:
    """Yield what is known of the ways of one device; ``most`` is the largest overhead of any."""
    overhead = family_of(device.local).encapsulation_overhead
    size = device.mtu + overhead
    measured, age_s = _measured(facts)
    found = {peer: passes for peer, passes in measured.items() if age_s <= _FRESH_S}
    unknown = [peer for peer in peers if peer not in found]
    found |= facts.echoes(unknown, size)
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
