"""Verdicts as steps: which rule lets through, stops or rewrites, and what may decide beside it."""

from collections.abc import Iterator, Sequence

from overlay.model.address import Family
from overlay.policy.listing import is_legacy
from overlay.policy.ruleset import TABLE
from overlay.policy.verdict import Packet, Verdict
from overlay.trace.facts import Party
from overlay.trace.reasons import OWN_RULES, Reason
from overlay.trace.steps import Step, broken

_IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}
# By the comment of our own rule (overlay/policy/egress.py).
_EGRESS = (
    "overlayctl network show -o json | jq '.Egress.Mode = \"island\"' | overlayctl network init -"
)
_OWN_MENDS = {
    "a pod to the tunnel port": "# use another port: pods may not speak to a tunnel",
    "a pod to the outside": _EGRESS,
    "the outside to a pod": _EGRESS,
}


def filter_steps(
    name: str, verdicts: Sequence[Verdict], packet: Packet, source: Party
) -> Iterator[Step]:
    """Yield what the chains of one hook do: one step for ours, one for each that decides more."""
    for verdict in verdicts:
        if verdict.chain.is_nat:
            continue
        if verdict.stops:
            yield _stopped(name, verdict, packet, source)
            return
        if verdict.is_ours:
            yield Step("node", name, f"{_passes(verdict)}")
        elif verdict.unread or verdict.chain.policy == "drop":
            yield _foreign(name, verdict)


def nat_steps(verdicts: Sequence[Verdict], packet: Packet, destination: Party) -> Iterator[Step]:
    """Yield what becomes of the source address; inside the fabric it must stay."""
    deciding = next((v for v in verdicts if v.outcome in {"masquerade", "rewrite"}), None)
    yield from filter_steps("policy", verdicts, packet, destination)
    unsure = [v for v in verdicts if v.chain.is_nat and v.unread]
    for verdict in unsure:
        yield _foreign("nat", verdict)
    if deciding is None or deciding.rule is None:
        if any(v.chain.is_nat for v in verdicts):
            yield Step("node", "nat", f"{packet.source} stays as it is")
        return
    rule = _rule(deciding)
    if destination.kind == "other":
        yield Step("node", "nat", f"{packet.source} becomes this node's address: {rule}")
        return
    version = packet.family.value
    part = "pods" if destination.kind == "pod" else "nodes"
    network = _network_of(destination, packet) if part == "pods" else str(destination.address)
    mend = f"nft add element {TABLE} ov_{part}{version} '{{ {network} }}'"
    if not deciding.is_ours:
        mend = _delete(deciding)
    yield broken(
        "node", "nat", rule,
        f"{packet.source} is rewritten on the way to a {destination.kind} of the fabric",
        mend,
        Reason.REWRITTEN,
    )  # fmt: skip


def _network_of(destination: Party, packet: Packet) -> str:
    network = destination.holder.network(packet.family) if destination.holder else None
    return str(network or destination.address)


def _passes(verdict: Verdict) -> str:
    if verdict.rule is None:
        return f"{verdict.chain.name} lets it through"
    return f"let through by {_rule(verdict)}"


def _stopped(name: str, verdict: Verdict, packet: Packet, source: Party) -> Step:
    word = "rejects" if verdict.outcome == "reject" else "drops"
    if verdict.rule is None:
        text = f"policy of {verdict.chain.name}, {verdict.chain.policy}"
        if verdict.unread:
            text += f", after {len(verdict.unread)} rules that are not read here"
        return broken(
            "node", name, text,
            f"the policy of {verdict.chain.name} {word} it",
            _accept(verdict, packet),
            Reason.OWN_RULE if verdict.is_ours else Reason.HOST_POLICY,
        )  # fmt: skip
    mend, reason = _delete(verdict), Reason.HOST_RULE
    if verdict.is_network_policy:
        fault, mend = "network policies do not allow it", _policy_test(packet)
        return broken("node", name, _rule(verdict), fault, mend, Reason.NETWORK_POLICY)
    if verdict.is_ours:
        mend = _own_mend(verdict, packet, source)
        reason = OWN_RULES.get(verdict.rule.comment, Reason.OWN_RULE)
    return broken("node", name, _rule(verdict), f"{verdict.chain.name} {word} it", mend, reason)


def _policy_test(packet: Packet) -> str:
    """Return what names the policy: the kernel's names are digests."""
    if packet.port is None:
        return "overlayctl policy list"
    service = f"--proto {packet.protocol} --port {packet.port}"
    return f"overlayctl policy test {packet.source} {packet.destination} {service}"


def _own_mend(verdict: Verdict, packet: Packet, source: Party) -> str:
    comment = verdict.rule.comment if verdict.rule is not None else ""
    if comment == "tunnel packets from no peer" and source.holder is not None:
        version = packet.family.value
        return f"nft add element {TABLE} ov_nodes{version} '{{ {packet.source} }}'"
    if comment == "a source address, forged":
        prefix = f"{packet.source}/{packet.source.max_prefixlen}"
        flag = " -6" if packet.family is Family.IPV6 else ""
        return f"ip{flag} route replace {prefix} dev {packet.iif} proto 80"
    return _OWN_MENDS.get(comment, "systemctl restart overlayd")


def _foreign(name: str, verdict: Verdict) -> Step:
    rules = "; ".join(f"`{rule}` (handle {rule.handle})" for rule in verdict.unread[:3])
    more = f" and {len(verdict.unread) - 3} more" if len(verdict.unread) > 3 else ""
    text = f"{verdict.chain.name} (policy {verdict.chain.policy}) may also decide"
    if rules:
        text += f": {rules}{more} cannot be judged from outside"
    else:
        text = f"let through by {_rule(verdict)}, policy {verdict.chain.policy}"
    return Step("node", name, text, "note" if rules else "ok")


def _rule(verdict: Verdict) -> str:
    assert verdict.rule is not None  # noqa: S101 - by the callers
    if is_legacy(verdict.where):
        return f"{verdict.where[1]} {verdict.rule}"
    return f"{' '.join(verdict.where)} handle {verdict.rule.handle}: {verdict.rule}"


def _delete(verdict: Verdict) -> str:
    if verdict.rule is None:
        return ""
    if is_legacy(verdict.where):
        return f"{verdict.where[1]} {verdict.rule.text.replace('-A ', '-D ', 1)}"
    return f"nft delete rule {' '.join(verdict.where)} handle {verdict.rule.handle}"


def _accept(verdict: Verdict, packet: Packet) -> str:
    place = verdict.chain.place
    is_iptables = place[1] == "filter" or is_legacy(place)
    if is_iptables and place[2] == "FORWARD":
        # The agent does the same, and keeps it: OVERLAY-FORWARD.
        return "systemctl restart overlayd  # it lets pods through iptables' FORWARD"
    if is_legacy(place):
        match = f"-s {packet.source} -d {packet.destination}"
        if packet.vni is not None:
            match = f"-p udp --dport {packet.port}"
        return f"{place[1]} -I {place[2]} {match} -j ACCEPT"
    ip = _IP[packet.family]
    match = f"{ip} saddr {packet.source} {ip} daddr {packet.destination}"
    if packet.vni is not None:
        match = f"udp dport {packet.port}"
    return f"nft insert rule {verdict.chain.name} {match} accept"
