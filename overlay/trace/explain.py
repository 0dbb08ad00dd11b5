"""From what was observed to the way as steps: there and, where the fabric carries it, back."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from overlay.trace.entry import arrival_steps, is_bridged_to, pod_steps
from overlay.trace.exits import delivery_steps, leaving_steps
from overlay.trace.facts import Leg, Observed, Party
from overlay.trace.reasons import Reason
from overlay.trace.routing import routing_steps
from overlay.trace.rules import filter_steps, nat_steps
from overlay.trace.steps import Step, Way, broken, up_to_the_break
from overlay.trace.tunnel import tunnel_steps


def explain(observed: Observed) -> Way:
    """Return the way of the packet, and of its answer, up to the first step that breaks."""
    return up_to_the_break(_steps(observed))


def _steps(observed: Observed) -> Iterator[Step]:
    for note in observed.notes:
        yield Step("node", "note", note, "note")
    if not observed.has_table:
        yield Step(
            "node",
            "policy",
            "no table inet overlay",
            "broken",
            fault="the fabric's rules are gone: nothing is masqueraded, and anybody may send",
            mend="systemctl restart overlayd",
            reason=Reason.TABLE_GONE,
        )
    source, destination, far = observed.source, observed.destination, observed.far
    yield from leg_steps(observed, observed.forward, source, destination, far.there)
    if observed.back is None:
        return
    for step in leg_steps(observed, observed.back, destination, source, far.back):
        # The far side's part of an answer was told on the way there.
        if step.state != "assumed":
            yield replace(step, place=f"answer, {step.place}")


def leg_steps(
    observed: Observed, leg: Leg, source: Party, destination: Party, told: Sequence[Step] = ()
) -> Iterator[Step]:
    """Yield the steps of one direction; ``told`` is what the other node said of it."""
    yield from _entry_steps(observed, leg, source, told)
    if leg.source is not None and leg.delivery is not None and _is_one_link(leg):
        yield Step("node", "bridge", f"{leg.packet.iif} carries it to {leg.delivery.link}")
        yield from delivery_steps(leg, leg.delivery)
        return
    yield from filter_steps("source check", leg.prerouting, leg.packet, source)
    yield from routing_steps(observed, leg, destination)
    hop = leg.hop
    if hop is None:
        return
    yield from filter_steps("policy", leg.passing, leg.packet, source)
    if hop.route.kind == "local":
        yield Step("node", "delivery", f"{leg.packet.destination} is this node's own")
        return
    yield from nat_steps(leg.postrouting, leg.packet, destination)
    if leg.tunnel is not None:
        yield from tunnel_steps(leg, leg.tunnel, destination, observed.own, observed.far, told)
    elif leg.delivery is not None:
        yield from delivery_steps(leg, leg.delivery)
    else:
        yield from leaving_steps(leg, hop, destination, observed.far, told)


def _entry_steps(
    observed: Observed, leg: Leg, source: Party, told: Sequence[Step]
) -> Iterator[Step]:
    """Yield how the packet comes to this node's routing."""
    if leg.entry == "pod" and leg.source is not None:
        yield from pod_steps(leg.source, leg.packet)
    elif leg.entry == "tunnel":
        yield from arrival_steps(leg, source, observed.own, observed.far, told)
    elif leg.entry == "outside" and told:
        yield from told
    elif leg.entry == "outside" and not leg.packet.iif:
        yield broken(
            "outside", "arrival", f"{leg.packet.source} would come in by no interface",
            f"this node has no way to {leg.packet.source}: nobody there is answered",
            f"overlayctl leases show {leg.packet.source}",
            Reason.ROUTE,
        )  # fmt: skip
    elif leg.entry == "outside":
        yield Step(
            "outside",
            "arrival",
            f"{leg.packet.source} would come in by {leg.packet.iif}{observed.far.because}",
            "assumed",
        )


def _is_one_link(leg: Leg) -> bool:
    """Return whether both pods are on one bridge: no routing is between them."""
    source, delivery = leg.source, leg.delivery
    return (
        source is not None
        and delivery is not None
        and source.routed == delivery.routed
        and is_bridged_to(source, leg.packet)
    )
