"""Who may talk to whom, said again from the API's text alone: slow and obvious.

Source: the field documentation of NetworkPolicy in ``networking.k8s.io/v1``
(staging/src/k8s.io/api/networking/v1/types.go of Kubernetes), which each
function quotes. Nothing here looks at ``overlay.policy``, nor uses what the
values of ``overlay.model.netpol`` can compute: what compiles policies is
judged by this.
"""

from collections.abc import Iterator

from overlay.model.address import IPAddress
from overlay.model.netpol import (
    BlockPeer,
    Flow,
    Labels,
    NetworkPolicy,
    Operator,
    Peer,
    Pod,
    PortMatch,
    Rule,
    Selector,
    World,
)


def is_allowed(world: World, flow: Flow) -> bool:
    """Return whether the connection comes about: both ends must allow it."""
    source, target = pod_at(world, flow.source), pod_at(world, flow.destination)
    if source is not None and target is not None and source.key == target.key:
        return True  # a pod reaches itself: that never leaves it
    return may_leave(world, flow) and may_enter(world, flow)


def may_leave(world: World, flow: Flow) -> bool:
    """Return whether the source's end allows it.

    "Outgoing traffic is allowed if there are no NetworkPolicies selecting the
    pod, OR if the traffic matches at least one egress rule across all of the
    NetworkPolicy objects whose podSelector matches the pod."
    """
    pod = pod_at(world, flow.source)
    if pod is None:
        return True
    over_it = [p for p in policies_over(world, pod) if p.egress is not None]
    if not over_it:
        return True
    for policy in over_it:
        for rule in policy.egress or ():
            if rule_allows(world, policy, rule, flow, flow.destination):
                return True
    return False


def may_enter(world: World, flow: Flow) -> bool:
    """Return whether the target's end allows it.

    "Traffic is allowed to a pod if there are no NetworkPolicies selecting the
    pod, OR if the traffic source is the pod's local node, OR if the traffic
    matches at least one ingress rule across all of the NetworkPolicy objects
    whose podSelector matches the pod."
    """
    pod = pod_at(world, flow.destination)
    if pod is None:
        return True
    if flow.source in world.nodes.get(pod.node, frozenset()):
        return True
    over_it = [p for p in policies_over(world, pod) if p.ingress is not None]
    if not over_it:
        return True
    for policy in over_it:
        for rule in policy.ingress or ():
            if rule_allows(world, policy, rule, flow, flow.source):
                return True
    return False


def pod_at(world: World, address: IPAddress) -> Pod | None:
    """Return the pod whose own address it is.

    A pod in the host's network has none of its own: it is its node. One that
    has finished has none any more.
    """
    for pod in world.pods.values():
        if not pod.is_on_host and not pod.is_finished and address in pod.addresses:
            return pod
    return None


def policies_over(world: World, pod: Pod) -> Iterator[NetworkPolicy]:
    """Yield the policies of the pod's namespace whose podSelector selects it."""
    for policy in world.policies.values():
        if policy.namespace == pod.namespace and selects(policy.pods, pod.labels):
            yield policy


def rule_allows(
    world: World, policy: NetworkPolicy, rule: Rule, flow: Flow, other_end: IPAddress
) -> bool:
    """Return whether one rule does: "the traffic must match both ports and from" (``to``)."""
    if rule.peers is None:  # "if this field is empty or missing, this rule matches all"
        peer_matches = True
    else:
        peer_matches = any(peer_is(world, policy, peer, other_end) for peer in rule.peers)
    if rule.ports is None:
        port_matches = True
    else:
        port_matches = any(port_is(world, port, flow) for port in rule.ports)
    return peer_matches and port_matches


def peer_is(world: World, policy: NetworkPolicy, peer: Peer, address: IPAddress) -> bool:
    """Return whether an address is one of a peer's.

    "If namespaceSelector is also set, then the peer selects the pods matching
    podSelector in the namespaces selected; otherwise in the policy's own."
    """
    if isinstance(peer, BlockPeer):
        if address.version != peer.block.version or address not in peer.block:
            return False
        return not any(address.version == hole.version and address in hole for hole in peer.holes)
    pod = pod_at(world, address)
    if pod is None:
        return False
    if peer.namespaces is None:
        in_namespace = pod.namespace == policy.namespace
    else:
        in_namespace = selects(peer.namespaces, labels_of(world, pod.namespace))
    return in_namespace and selects(peer.pods, pod.labels)


def port_is(world: World, port: PortMatch, flow: Flow) -> bool:
    """Return whether the flow goes to that port.

    "If port is not provided, this matches all port names and numbers. If
    present, only traffic on the specified protocol AND port will be matched."
    A name is one of the target pod's; what is no pod has none.
    """
    if port.protocol is not flow.protocol:
        return False
    if port.port is None:
        return True
    if isinstance(port.port, int):
        last = port.port if port.last is None else port.last
        return port.port <= flow.port <= last  # "from port to endPort, inclusive"
    target = pod_at(world, flow.destination)
    if target is None:
        return False
    return any(
        named.name == port.port and named.protocol is flow.protocol and named.number == flow.port
        for named in target.ports
    )


def labels_of(world: World, namespace: str) -> Labels:
    """Return a namespace's labels; its name is always one of them."""
    return {"kubernetes.io/metadata.name": namespace, **world.namespaces.get(namespace, {})}


def selects(selector: Selector, labels: Labels) -> bool:
    """Return whether all requirements are met (LabelSelector: "the requirements are ANDed")."""
    for requirement in selector.requirements:
        has_key = requirement.key in labels
        has_value = has_key and labels[requirement.key] in requirement.values
        is_met = {
            Operator.IN: has_value,
            Operator.NOT_IN: not has_value,
            Operator.EXISTS: has_key,
            Operator.DOES_NOT_EXIST: not has_key,
        }[requirement.operator]
        if not is_met:
            return False
    return True
