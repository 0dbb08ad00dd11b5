"""Where a tagged probe was seen, and what follows from where it was not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from overlay.model.address import Family, IPAddress, family_of
from overlay.trace import syn
from overlay.trace.bpf import probe_filter, tunnel_filter
from overlay.trace.facts import Leg, Observed

What: TypeAlias = Literal["probe", "answer", "refusal", "reset"]

# ICMP and ICMPv6 types (RFC 792, RFC 4443): an echo's answer, and errors that quote a packet.
_REPLY = {Family.IPV4: 0, Family.IPV6: 129}
_REQUEST = {Family.IPV4: 8, Family.IPV6: 128}
_ICMP_HEADER, _UDP_HEADER = 8, 8  # bytes


@dataclass(frozen=True, slots=True)
class Tap:
    """A device where the probe should pass, and the filter that lets nothing else by."""

    device: str
    place: str
    program: bytes


@dataclass(frozen=True, slots=True)
class Sighting:
    """The probe, or what it was answered with, at one device. ``after_ms`` from the first."""

    device: str
    what: What
    is_outgoing: bool
    after_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return the sighting as a document."""
        direction = "out" if self.is_outgoing else "in"
        return {
            "device": self.device,
            "what": self.what,
            "direction": direction,
            "after_ms": round(self.after_ms, 3),
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the sightings say. ``is_lost`` is False where a datagram was just not answered."""

    text: str
    is_lost: bool


def taps_for(observed: Observed) -> list[Tap]:
    """Return where the probe of ``observed`` should pass on this node, in its order."""
    leg = observed.forward
    inner = probe_filter(leg.packet.source, leg.packet.destination)
    found: list[Tap] = []
    if leg.source is not None:
        found.append(Tap(leg.source.link, "pod", inner))
    tunnel = leg.tunnel
    if tunnel is not None:
        found.append(Tap(tunnel.link.name, "tunnel", inner))
        if tunnel.hop is not None and tunnel.hop.route.device and tunnel.outer is not None:
            program = tunnel_filter(tunnel.link.port, pods=(leg.packet.destination,))
            found.append(Tap(tunnel.hop.route.device, "underlay", program))
    elif leg.delivery is not None:
        found.append(Tap(leg.delivery.link, "pod", inner))
    elif leg.hop is not None and leg.hop.route.kind == "unicast":
        found.append(Tap(leg.hop.route.device, "underlay", inner))
    # Two pods of one bridge, or a node to itself, may name a device twice.
    return list({tap.device: tap for tap in found}.values())


def what_is(
    frame: bytes, token: bytes, destination: IPAddress, *, is_udp: bool = False, syn_to: int = 0
) -> What | None:
    """Return what a frame that holds ``token`` is; None for one without it.

    ``syn_to`` is the port that a TCP SYN went to, 0 where the probe is none.
    """
    if syn_to:
        what, start = syn.find(frame, syn_to, token)
        if start < 0:
            return None
        return "refusal" if _quotes(frame, start, family_of(destination)) else what
    at = frame.find(token)
    if at < 0:
        return None
    family = family_of(destination)
    if is_udp:
        # An error quotes the datagram behind its own header; the answer to a
        # datagram that is the same datagram is an echo service's.
        own = frame.rfind(destination.packed, 0, at)
        return _of_datagram(frame, at, own, family)
    kind = frame[at - _ICMP_HEADER] if at >= _ICMP_HEADER else -1
    if kind == _REPLY[family]:
        return "answer"
    if kind == _REQUEST[family]:
        return "refusal" if _quotes(frame, at - _ICMP_HEADER, family) else "probe"
    return None


def _of_datagram(frame: bytes, at: int, own: int, family: Family) -> What:
    if _quotes(frame, at - _UDP_HEADER, family):
        return "refusal"
    size = len(frame[own : own + (4 if family is Family.IPV4 else 16)])
    header = at - _UDP_HEADER - size
    return "probe" if own >= 0 and own == header else "answer"


def _quotes(frame: bytes, transport: int, family: Family) -> bool:
    """Return whether the IP header before ``transport`` is itself carried in an ICMP error.

    An error's eight bytes stand before it: its type is of those that quote.
    """
    header = transport - (20 if family is Family.IPV4 else 40)
    error = header - _ICMP_HEADER
    if error < 34:
        return False
    outer = 20 if family is Family.IPV4 else 40
    protocol_at = error - outer + (9 if family is Family.IPV4 else 6)
    icmp = 1 if family is Family.IPV4 else 58
    version = frame[error - outer] >> 4 if error >= outer else 0
    return version == family.value and frame[protocol_at] == icmp


def in_order(taps: Sequence[Tap], seen: Sequence[Sighting]) -> list[Sighting]:
    """Return the sightings as the way goes: the probe outwards, then what came back.

    Within microseconds the kernel's stamps say little: a packet keeps one
    from device to device.
    """
    place = {tap.device: number for number, tap in enumerate(taps)}

    def order(sighting: Sighting) -> tuple[bool, int]:
        at = place.get(sighting.device, 0)
        return (sighting.what != "probe", at if sighting.what == "probe" else -at)

    return sorted(seen, key=order)


def judge(observed: Observed, taps: Sequence[Tap], seen: Sequence[Sighting]) -> Judgement:
    """Return what happened to the probe, by where it was seen."""
    if not taps:
        return Judgement("the probe passes no interface of this node", is_lost=False)
    refusal = next((s for s in seen if s.what == "refusal"), None)
    answered = {s.device for s in seen if s.what == "answer"}
    probed = {s.device for s in seen if s.what == "probe"}
    leg = observed.forward
    if taps[0].device in answered:
        first = next(s for s in seen if s.device == taps[0].device and s.what == "answer")
        return Judgement(f"answered after {first.after_ms:.2f} ms", is_lost=False)
    reset = next((s for s in seen if s.what == "reset"), None)
    if reset is not None:
        where = f"{leg.packet.destination} has nobody on port {leg.packet.port}"
        return Judgement(f"reset by {reset.device}: {where}", is_lost=True)
    if refusal is not None:
        return Judgement(f"refused: an ICMP error came by {refusal.device}", is_lost=True)
    missing = next((tap for tap in taps if tap.device not in probed), None)
    if missing is not None:
        before = taps[taps.index(missing) - 1].device if missing is not taps[0] else "its sender"
        text = f"it left {before} and was not seen on {missing.device}: lost on this node"
        return Judgement(text, is_lost=True)
    last = taps[-1]
    back = next((tap for tap in taps if tap.device in answered), None)
    if back is not None:
        lost_at = taps[taps.index(back) - 1].device
        text = f"the answer came by {back.device} and was not seen on {lost_at}: lost on this node"
        return Judgement(text, is_lost=True)
    if leg.packet.protocol == "udp":
        return Judgement(f"it left by {last.device}; nothing answered the datagram", is_lost=False)
    where = f"lost in {_beyond(observed, last)}"
    return Judgement(f"it left by {last.device}, and no answer came: {where}", is_lost=True)


def _beyond(observed: Observed, last: Tap) -> str:
    if last.place == "pod":
        return "the pod"
    node = observed.destination.node
    return f"the underlay or on {node}" if node else "the network beyond"


def probe_leg(observed: Observed) -> Leg | None:
    """Return the leg that a probe can be sent on from here; None where its source is elsewhere."""
    leg = observed.forward
    return leg if leg.entry in {"pod", "node"} else None
