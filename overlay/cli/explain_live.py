"""``explain --live``: one tagged packet, and where on this node it is seen."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from overlay.cli.out import Output
from overlay.kernel.nft import NftError
from overlay.kernel.nft_listing import read_ruleset
from overlay.kernel.probe import TOKEN_BYTES, send_probe
from overlay.kernel.taps import Frame, Taps
from overlay.model.errors import UsageError
from overlay.policy.listing import Listing, Place
from overlay.trace.facts import Observed
from overlay.trace.live import Sighting, in_order, judge, probe_leg, taps_for, what_is

_LONGEST_S: Final = 2.0  # a neighbor is asked for thrice within that (RFC 4861: RETRANS_TIMER)


def send_and_watch(observed: Observed) -> dict[str, Any]:
    """Return where a probe was seen, as a document. Raises UsageError, KernelError."""
    leg = probe_leg(observed)
    if leg is None:
        raise UsageError(
            f"--live: {observed.source.asked} is not on this node; ask on "
            f"{observed.source.node or 'its node'}, or the other way round"
        )
    token = secrets.token_bytes(TOKEN_BYTES)
    is_udp = leg.packet.protocol == "udp"
    syn_to = (leg.packet.port or 0) if leg.packet.protocol == "tcp" else 0
    if leg.packet.protocol == "tcp" and not syn_to:
        raise UsageError("--live --proto tcp: name a --port, which the SYN is sent to")
    taps = taps_for(observed)
    destination = leg.packet.destination

    def sighting(frame: Frame, first_ns: int = 0) -> Sighting | None:
        what = what_is(frame.data, token, destination, is_udp=is_udp, syn_to=syn_to)
        if what is None:
            return None
        return Sighting(frame.device, what, frame.is_outgoing, (frame.at_ns - first_ns) / 1e6)

    def is_answered(frames: Sequence[Frame]) -> bool:
        found = [s for s in map(sighting, frames) if s is not None]
        return any(s.device == taps[0].device and s.what != "probe" for s in found)

    before = _counted()
    with Taps({tap.device: tap.program for tap in taps}) as listening:
        sandbox = leg.source.sandbox if leg.source is not None else ""
        send_probe(leg.packet, token, sandbox)
        frames = listening.collect(is_answered, _LONGEST_S) if taps else []
    # The first sighting of the probe is the moment that counts.
    start_ns = next((f.at_ns for f in frames if sighting(f) is not None), 0)
    seen = [s for s in (sighting(f, start_ns) for f in frames) if s is not None]
    seen = in_order(taps, seen)
    verdict = judge(observed, taps, seen)
    return {
        "probe": "UDP datagram" if is_udp else "TCP SYN" if syn_to else "ICMP echo",
        "seen": [each.to_json() for each in seen],
        "counted": _rose(before, _counted()),
        "verdict": verdict.text,
        "broken": verdict.is_lost,
    }


def show(out: Output, live: Mapping[str, Any]) -> None:
    """Print the sightings for people."""
    out.line("")
    rows = [[f"{s['after_ms']:.2f}", s["device"], s["direction"], s["what"]] for s in live["seen"]]
    out.table(("MS", "SEEN ON", "", "WHAT"), rows, live)
    for line in live["counted"]:
        out.line(f"counted meanwhile: {line}")
    out.line(f"{live['probe']}: {live['verdict']}")


def _counted() -> dict[tuple[Place, int], tuple[int, str]]:
    """Return the packets that each of our dropping rules counted, with its text."""
    try:
        ruleset: Listing = read_ruleset()
    except NftError:
        return {}
    return {
        (place, rule.handle): (rule.packets, f"{' '.join(place)} handle {rule.handle}: {rule}")
        for place, chain in ruleset.chains.items()
        for rule in chain.rules
        if rule.packets is not None
    }


def _rose(
    before: Mapping[tuple[Place, int], tuple[int, str]],
    after: Mapping[tuple[Place, int], tuple[int, str]],
) -> list[str]:
    return [
        f"{count - before[key][0]} by {text}"
        for key, (count, text) in after.items()
        if key in before and count > before[key][0]
    ]
