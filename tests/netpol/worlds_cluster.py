"""Random worlds with an admin tier over them."""

from dataclasses import replace
from typing import Final

from hypothesis import strategies as st

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
from overlay.model.netpol import (
    BlockPeer,
    Operator,
    PodPeer,
    PortMatch,
    Requirement,
    Selector,
    World,
)
from tests.netpol.worlds import (
    BLOCKS,
    NODES,
    PORT_NAMES,
    PORTS,
    namespace_selectors,
    pod_selectors,
    protocols,
    worlds,
)

_NODE_LABELS: Final = {node: {"zone": zone} for node, zone in zip(NODES, "aab", strict=True)}
_pods: Final = st.builds(PodPeer, pod_selectors, namespace_selectors)
_nodes: Final = st.sampled_from(("a", "b", "c")).map(
    lambda zone: NodePeer(Selector((Requirement("zone", Operator.IN, frozenset({zone})),)))
)
_blocks: Final = st.sampled_from(BLOCKS).map(BlockPeer)
_numbers: Final = st.one_of(
    st.builds(PortMatch, protocols),
    st.builds(PortMatch, protocols, st.sampled_from(PORTS)),
    st.builds(PortMatch, protocols, st.sampled_from((1, 79, 80)), st.sampled_from((81, 443))),
)
_names: Final = st.builds(NamedPortMatch, st.sampled_from(PORT_NAMES))


@st.composite
def _rules(draw: st.DrawFn, *, is_egress: bool) -> ClusterRule:
    """Draw a rule; a name stands only beside pods, as the API demands."""
    peer: st.SearchStrategy[ClusterPeer] = _pods
    if is_egress and draw(st.booleans()):
        peer = st.one_of(_pods, _nodes, _blocks)
    peers = tuple(draw(st.lists(peer, min_size=1, max_size=2)))
    port: st.SearchStrategy[ClusterPort] = _numbers
    if all(isinstance(each, PodPeer) for each in peers):
        port = st.one_of(_numbers, _names)
    ports = draw(st.none() | st.lists(port, min_size=1, max_size=2).map(tuple))
    return ClusterRule(draw(st.sampled_from(Action)), peers, ports)


@st.composite
def tiered_worlds(draw: st.DrawFn) -> World:
    """Draw a world with up to four cluster policies, no two of one priority."""
    world = draw(worlds())
    priorities = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=4, unique=True))
    policies = [
        ClusterNetworkPolicy(
            name=f"c{number}",
            tier=draw(st.sampled_from(Tier)),
            priority=priority,
            subject=draw(_pods),
            ingress=tuple(draw(st.lists(_rules(is_egress=False), max_size=2))),
            egress=tuple(draw(st.lists(_rules(is_egress=True), max_size=2))),
        )
        for number, priority in enumerate(priorities)
    ]
    return replace(
        world,
        policies=world.policies if draw(st.booleans()) else {},
        cluster_policies={policy.name: policy for policy in policies},
        node_labels=_NODE_LABELS,
    )
