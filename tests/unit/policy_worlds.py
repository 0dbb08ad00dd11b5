"""Small random worlds of pods, namespaces and policies, for hypothesis.

Small domains make things meet: labels that are selected, addresses that two
pods have for a moment, blocks within blocks, names of ports that some have.
"""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Final, TypeVar

from hypothesis import strategies as st

from overlay.model.address import IPAddress
from overlay.model.cluster_policy import (
    Action,
    ClusterNetworkPolicy,
    ClusterPeer,
    ClusterRule,
    NamedPortMatch,
    NodePeer,
    Tier,
)
from overlay.model.netpol import (
    NAME_LABEL,
    BlockPeer,
    NamedPort,
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    PortMatch,
    Protocol,
    Requirement,
    Rule,
    Selector,
    World,
)

T = TypeVar("T")
NODES: Final = ("n1", "n2", "n3")
NAMESPACES: Final = ("x", "y", "z")
NAMES: Final = ("a", "b", "c")
_POOL: Final = tuple(
    ip_address(text) for n in range(1, 8) for text in (f"10.244.0.{n}", f"fd00:244::{n}")
)

_keys = st.sampled_from(["app", "tier", NAME_LABEL])
_values = st.sampled_from(["a", "b", "x", "y"])
_labels = st.dictionaries(st.sampled_from(["app", "tier"]), _values, max_size=2)
_protocols = st.sampled_from([Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.SCTP])
_spaces = st.sampled_from(["x", "x", "y", "z"])
_seldom = st.sampled_from([False] * 11 + [True])
_port_names = st.sampled_from(["http", "sql"])
_numbers = st.sampled_from([80, 81, 90, 443, 5432])


@st.composite
def _requirements(draw: st.DrawFn) -> Requirement:
    operator = draw(st.sampled_from(Operator))
    takes_values = operator in {Operator.IN, Operator.NOT_IN}
    values = draw(st.frozensets(_values, min_size=1, max_size=2)) if takes_values else frozenset()
    return Requirement(draw(_keys), operator, values)


_selectors = st.sampled_from([0, 0, 0, 1, 1, 2]).flatmap(
    lambda n: st.lists(_requirements(), min_size=n, max_size=n).map(
        lambda found: Selector(tuple(found))
    )
)
_blocks = st.sampled_from(
    [
        BlockPeer(ip_network("10.244.0.0/29"), (ip_network("10.244.0.2/31"),)),
        BlockPeer(ip_network("10.244.0.0/16"), (ip_network("10.244.0.0/30"),)),
        BlockPeer(ip_network("0.0.0.0/0")),
        BlockPeer(ip_network("192.0.2.0/24"), (ip_network("192.0.2.128/25"),)),
        BlockPeer(ip_network("fd00:244::/64"), (ip_network("fd00:244::4/126"),)),
        BlockPeer(ip_network("::/0"), (ip_network("fd00:244::1/128"),)),
    ]
)
_pod_peers = st.builds(PodPeer, _selectors, st.none() | _selectors)


@st.composite
def _ports(draw: st.DrawFn) -> PortMatch:
    port = draw(st.none() | _numbers | _numbers | _port_names)
    last = draw(st.none() | st.integers(0, 20)) if isinstance(port, int) else None
    end = port + last if isinstance(port, int) and last is not None else None
    return PortMatch(draw(_protocols), port, end)


def _some(each: st.SearchStrategy[T], most: int = 2) -> st.SearchStrategy[tuple[T, ...] | None]:
    some = st.lists(each, min_size=1, max_size=most).map(tuple)
    return st.sampled_from([0, 1, 1, 1]).flatmap(lambda n: some if n else st.none())


_rules = st.builds(Rule, _some(_pod_peers | _pod_peers | _blocks), _some(_ports(), 3))
_none_or_empty = st.sampled_from([None, ()])
_directions = st.sampled_from([0, 1, 1, 1]).flatmap(
    lambda n: st.lists(_rules, min_size=1, max_size=3).map(tuple) if n else _none_or_empty
)
policies = st.builds(
    NetworkPolicy,
    _spaces,
    st.sampled_from(NAMES),
    _selectors,
    _directions,
    _directions,
)


@st.composite
def _cluster_rules(draw: st.DrawFn, *, is_egress: bool) -> ClusterRule:
    pods = st.builds(PodPeer, _selectors, _selectors)
    named = draw(st.booleans())
    nodes = st.builds(NodePeer, _selectors)
    kinds: st.SearchStrategy[ClusterPeer] = pods
    if is_egress and not named:
        kinds = pods | _blocks | nodes
    numbers = _ports().filter(lambda port: not isinstance(port.port, str))
    ports = st.builds(NamedPortMatch, _port_names) | numbers if named else numbers
    return ClusterRule(
        draw(st.sampled_from(Action)),
        tuple(draw(st.lists(kinds, min_size=1, max_size=2))),
        draw(_some(ports)),
        draw(st.sampled_from(["", "rule"])),
    )


cluster_policies = st.builds(
    ClusterNetworkPolicy,
    st.sampled_from(NAMES),
    st.sampled_from(Tier),
    st.integers(0, 2),
    st.builds(PodPeer, _selectors, _selectors),
    st.lists(_cluster_rules(is_egress=False), max_size=2).map(tuple),
    st.lists(_cluster_rules(is_egress=True), max_size=2).map(tuple),
)
_named_ports = st.lists(
    st.builds(NamedPort, _port_names, st.sampled_from([80, 85, 8080]), _protocols), max_size=2
).map(tuple)
pods = st.builds(
    Pod,
    _spaces,
    st.sampled_from(NAMES),
    st.frozensets(st.sampled_from(_POOL), min_size=1, max_size=2),
    _labels,
    st.sampled_from(["n1", "n1", "n1", "n2", "n3"]),
    _named_ports,
    is_on_host=_seldom,
    is_finished=_seldom,
)
_ADDRESSES: Final[dict[str, frozenset[IPAddress]]] = {
    name: frozenset({ip_address(f"192.0.2.{n}"), ip_address(f"2001:db8::{n}")})
    for n, name in enumerate(NODES, 1)
}


_moved = st.dictionaries(st.sampled_from(NODES), st.sampled_from(list(_ADDRESSES.values())))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Draw a world of three nodes."""
    return World(
        {pod.key: pod for pod in draw(st.lists(pods, min_size=4, max_size=8))},
        {name: {**draw(_labels), NAME_LABEL: name} for name in NAMESPACES},
        {each.key: each for each in draw(st.lists(policies, min_size=2, max_size=5))},
        _ADDRESSES,
        {name: draw(_labels) for name in NODES},
        {each.name: each for each in draw(st.lists(cluster_policies, max_size=2))},
    )


@st.composite
def successors(draw: st.DrawFn, world: World) -> World:
    """Draw what a world may become: a few things changed, the rest the same objects."""
    pods_now, policies_now = dict(world.pods), dict(world.policies)
    namespaces, labels = dict(world.namespaces), dict(world.node_labels)
    cluster = dict(world.cluster_policies)
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.integers(0, 7)):
            case 0 | 1:
                pod = draw(pods)
                pods_now[pod.key] = pod
            case 2:
                if pods_now:
                    del pods_now[draw(st.sampled_from(sorted(pods_now)))]
            case 3:
                if pods_now:
                    key = draw(st.sampled_from(sorted(pods_now)))
                    pods_now[key] = replace(pods_now[key], labels=draw(_labels))
            case 4:
                policy = draw(policies)
                policies_now[policy.key] = policy
            case 5:
                if policies_now:
                    del policies_now[draw(st.sampled_from(sorted(policies_now)))]
            case 6:
                name = draw(st.sampled_from(NAMESPACES))
                namespaces[name] = {**draw(_labels), NAME_LABEL: name}
                labels[draw(st.sampled_from(NODES))] = draw(_labels)
            case 7:
                each = draw(cluster_policies)
                cluster[each.name] = each
    nodes = draw(st.sampled_from([world.nodes, world.nodes, None])) or draw(_moved)
    return World(pods_now, namespaces, policies_now, nodes, labels, cluster)
