"""The admin tier, said again from the API's text alone; beside ``reference``.

Source: the field documentation of ClusterNetworkPolicy in
``policy.networking.k8s.io/v1alpha2`` (kubernetes-sigs/network-policy-api,
apis/v1alpha2/clusternetworkpolicy_types.go), which is quoted.
"""

from overlay.model.address import IPAddress
from overlay.model.cluster_policy import (
    Action,
    ClusterNetworkPolicy,
    ClusterPeer,
    ClusterPort,
    ClusterRule,
    NamedPortMatch,
    NodePeer,
    Tier,
)
from overlay.model.netpol import BlockPeer, Flow, Pod, PodPeer, World
from tests.netpol import reference
from tests.netpol.reference import labels_of, pod_at, policies_over, port_is, selects


def is_allowed(world: World, flow: Flow) -> bool:
    """Return whether the connection comes about: Admin, then NetworkPolicy, then Baseline."""
    source, target = pod_at(world, flow.source), pod_at(world, flow.destination)
    if source is not None and target is not None and source.key == target.key:
        return True
    if source is not None and not _may(world, flow, source, is_egress=True):
        return False
    if target is None or flow.source in world.nodes.get(target.node, frozenset()):
        return True
    return _may(world, flow, target, is_egress=False)


def _may(world: World, flow: Flow, pod: Pod, *, is_egress: bool) -> bool:
    """Return what one end says.

    "If Admin tier has made a final decision (Accept or Deny), then no further
    evaluation is done. v1.NetworkPolicy always makes a final decision for
    selected pods. If a connection wasn't allowed or denied by any of the
    tiers, all pods can communicate with each other."
    """
    decided = _decision(world, flow, pod, Tier.ADMIN, is_egress=is_egress)
    if decided is not None:
        return decided
    isolating = [
        policy
        for policy in policies_over(world, pod)
        if (policy.egress if is_egress else policy.ingress) is not None
    ]
    if isolating:
        may = reference.may_leave if is_egress else reference.may_enter
        return may(world, flow)
    decided = _decision(world, flow, pod, Tier.BASELINE, is_egress=is_egress)
    return decided is not False


def _decision(world: World, flow: Flow, pod: Pod, tier: Tier, *, is_egress: bool) -> bool | None:
    """Return what a tier decides, None for nothing.

    "Policies with lower priority values are checked before policies with
    higher priority values in the same tier. The relative precedence of rules
    within a single object will be determined by the order in which the rule is
    written." "Pass: skips all further rules in the current tier."
    """
    subjects = [
        policy
        for policy in world.cluster_policies.values()
        if policy.tier is tier and _is_subject(world, policy, pod)
    ]
    for policy in sorted(subjects, key=lambda each: each.priority):
        for rule in policy.egress if is_egress else policy.ingress:
            if not _matches(world, rule, flow, flow.destination if is_egress else flow.source):
                continue
            return None if rule.action is Action.PASS else rule.action is Action.ACCEPT
    return None


def _is_subject(world: World, policy: ClusterNetworkPolicy, pod: Pod) -> bool:
    """Return whether a policy applies: "host-networked pods are not included"."""
    return _is_pod(world, policy.subject, pod)


def _matches(world: World, rule: ClusterRule, flow: Flow, other_end: IPAddress) -> bool:
    """Return whether a rule is about the flow: any peer, and any protocol where it names some."""
    if rule.peers is not None and not any(_is(world, peer, other_end) for peer in rule.peers):
        return False
    return rule.ports is None or any(_is_port(world, port, flow) for port in rule.ports)


def _is(world: World, peer: ClusterPeer, address: IPAddress) -> bool:
    if isinstance(peer, NodePeer):
        return any(
            address in own and selects(peer.nodes, world.node_labels.get(node, {}))
            for node, own in world.nodes.items()
        )
    if isinstance(peer, BlockPeer):
        return address.version == peer.block.version and address in peer.block
    pod = pod_at(world, address)
    return pod is not None and _is_pod(world, peer, pod)


def _is_pod(world: World, peer: PodPeer, pod: Pod) -> bool:
    assert peer.namespaces is not None
    in_namespace = selects(peer.namespaces, labels_of(world, pod.namespace))
    return in_namespace and selects(peer.pods, pod.labels)


def _is_port(world: World, port: ClusterPort, flow: Flow) -> bool:
    if not isinstance(port, NamedPortMatch):
        return port_is(world, port, flow)
    target = pod_at(world, flow.destination)
    return target is not None and any(
        named.name == port.name and named.number == flow.port and named.protocol is flow.protocol
        for named in target.ports
    )
