"""Random worlds for policies, small, so that what is drawn meets itself often.

Few namespaces, labels, ports and networks stand for many: a selector that is
drawn selects somebody as a rule, a block holds some addresses and leaves
others out, and a finished pod's address may be a living one's again.
"""

from ipaddress import ip_address, ip_network
from typing import Final

from hypothesis import strategies as st

from overlay.model.address import IPAddress, IPNetwork
from overlay.model.netpol import (
    EVERYTHING,
    NAME_LABEL,
    BlockPeer,
    Flow,
    Labels,
    NamedPort,
    NetworkPolicy,
    Operator,
    Peer,
    Pod,
    PodPeer,
    PortMatch,
    Protocol,
    Requirement,
    Rule,
    Selector,
    World,
)

NODES: Final = ("n1", "n2", "n3")
NODE_ADDRESSES: Final = {
    name: frozenset(map(ip_address, (f"192.0.2.{number}", f"2001:db8:1::{number}")))
    for number, name in enumerate(NODES, 1)
}
OUTSIDE: Final[tuple[IPAddress, ...]] = tuple(
    map(ip_address, ("198.51.100.1", "198.51.100.130", "2001:db8:2::1", "2001:db8:2::8001"))
)
PORTS: Final = (79, 80, 81, 443, 8080)
_USUAL: Final = (80, 81)
_NAMESPACES: Final = ("x", "y", "z")
_HOMES: Final = ("x", "x", "x", "y", "y", "z")  # so that pods and policies meet
_MOST_PODS: Final = 7
LAST_PLACE: Final = _MOST_PODS + 2  # the last byte of the last address that a pod may have
PORT_NAMES: Final = ("web", "dns")
_TEAM: Final = "team"

# Networks that split what is above in different places.
BLOCKS: Final[tuple[IPNetwork, ...]] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/0",
            "10.244.0.0/16",
            "10.244.1.0/24",
            "10.244.1.0/30",
            "10.244.1.2/32",
            "10.244.2.0/24",
            "192.0.2.0/24",
            "192.0.2.1/32",
            "198.51.100.0/24",
            "198.51.100.0/25",
            "::/0",
            "fd00:10:244::/48",
            "fd00:10:244:1::/64",
            "fd00:10:244:1::2/127",
            "fd00:10:244:2::2/128",
            "2001:db8::/32",
            "2001:db8:1::1/128",
            "2001:db8:2::/113",
        ),
    )
)

_labels: Final[st.SearchStrategy[Labels]] = st.fixed_dictionaries(
    {},
    optional={
        "app": st.sampled_from(("a", "b", "c")),
        "tier": st.sampled_from(("front", "")),
    },
)
protocols: Final = st.sampled_from((Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.SCTP))


def _requirements(values: dict[str, tuple[str, ...]]) -> st.SearchStrategy[Requirement]:
    def of(key: str) -> st.SearchStrategy[Requirement]:
        some = st.frozensets(st.sampled_from(values[key]), min_size=1, max_size=2)
        return st.one_of(
            some.map(lambda chosen: Requirement(key, Operator.IN, chosen)),
            some.map(lambda chosen: Requirement(key, Operator.NOT_IN, chosen)),
            st.sampled_from((Operator.EXISTS, Operator.DOES_NOT_EXIST)).map(
                lambda operator: Requirement(key, operator)
            ),
        )

    return st.one_of([of(key) for key in values])


def _selectors(values: dict[str, tuple[str, ...]]) -> st.SearchStrategy[Selector]:
    return st.lists(_requirements(values), max_size=2).map(lambda all_: Selector(tuple(all_)))


pod_selectors: Final = _selectors({"app": ("a", "b", "c", "d"), "tier": ("front", "")})
namespace_selectors: Final = _selectors({_TEAM: ("red", "blue"), NAME_LABEL: _NAMESPACES})


@st.composite
def _block_peers(draw: st.DrawFn) -> BlockPeer:
    block = draw(st.sampled_from(BLOCKS))
    inside = [
        other
        for other in BLOCKS
        if other.version == block.version and other != block and _is_in(other, block)
    ]
    holes = draw(st.lists(st.sampled_from(inside), max_size=2, unique=True)) if inside else []
    return BlockPeer(block, tuple(holes))


def _is_in(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen


_peers: Final[st.SearchStrategy[Peer]] = st.one_of(
    st.builds(PodPeer, pod_selectors, st.none() | namespace_selectors), _block_peers()
)


@st.composite
def _port_matches(draw: st.DrawFn) -> PortMatch:
    protocol = draw(protocols)
    port: int | str | None = draw(st.none() | st.sampled_from(PORTS) | st.sampled_from(PORT_NAMES))
    last = None
    if isinstance(port, int) and draw(st.booleans()):
        last = draw(st.sampled_from([p for p in (*PORTS, 65535) if p >= port]))
    return PortMatch(protocol, port, last)


_rules: Final = st.builds(
    Rule,
    peers=st.one_of(
        st.none(),
        st.lists(_peers, min_size=1, max_size=2).map(tuple),
        st.lists(_peers, min_size=1, max_size=1).map(tuple),
    ),
    ports=st.none() | st.lists(_port_matches(), min_size=1, max_size=2).map(tuple),
)
_some_rules: Final = st.lists(_rules, max_size=2).map(tuple)
_rule_lists: Final = st.one_of(st.none(), _some_rules, _some_rules)

_policies: Final = st.builds(
    NetworkPolicy,
    namespace=st.sampled_from(_HOMES),
    name=st.sampled_from(("one", "two", "three")),
    pods=st.just(EVERYTHING) | pod_selectors,
    ingress=_rule_lists,
    egress=_rule_lists,
)
_named_ports: Final = st.lists(
    st.builds(NamedPort, st.sampled_from(PORT_NAMES), st.sampled_from(_USUAL), protocols),
    max_size=2,
    unique_by=lambda port: port.name,
).map(tuple)


@st.composite
def _pods(draw: st.DrawFn, index: int) -> Pod:
    """Draw a pod; its addresses follow from its node and ``index``, which differs from pod to pod.

    A finished one has the addresses of the pod after it: they were given anew.
    """
    fate = draw(st.sampled_from(("lives",) * 6 + ("on host", "finished")))
    node = draw(st.integers(1, len(NODES)))
    last = index + (2 if fate == "finished" else 1)
    versions = draw(st.sampled_from(((4, 6), (4, 6), (4,), (6,))))
    name = NODES[node - 1]
    return Pod(
        namespace=draw(st.sampled_from(_HOMES)),
        name=f"p{index}",
        addresses=NODE_ADDRESSES[name]
        if fate == "on host"
        else frozenset(place(version, node, last) for version in versions),
        labels=draw(_labels),
        node=name,
        ports=draw(_named_ports),
        is_on_host=fate == "on host",
        is_finished=fate == "finished",
    )


def place(version: int, node: int, last: int) -> IPAddress:
    """Return the address that ends with ``last`` among those of a node's pods."""
    if version == 4:
        return ip_address(f"10.244.{node}.{last}")
    return ip_address(f"fd00:10:244:{node}::{last}")


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Draw a world of up to seven pods on three nodes, under up to four policies."""
    count = draw(st.integers(2, _MOST_PODS))
    pods = [draw(_pods(index)) for index in range(1, count + 1)]
    policies = draw(st.lists(_policies, min_size=1, max_size=4))
    namespaces: dict[str, Labels] = {}
    for name in _NAMESPACES:
        team = draw(st.sampled_from(("unknown", "", "red", "blue")))
        if team != "unknown":
            namespaces[name] = {NAME_LABEL: name, **({_TEAM: team} if team else {})}
    return World(
        pods={pod.key: pod for pod in pods},
        namespaces=namespaces,
        policies={policy.key: policy for policy in policies},
        nodes=NODE_ADDRESSES,
    )


def addresses(world: World) -> list[IPAddress]:
    """Return every address that something may come from or go to, sorted."""
    found = {address for pod in world.pods.values() for address in pod.addresses}
    found.update(*world.nodes.values())
    found.update(OUTSIDE)
    return sorted(found, key=lambda address: (address.version, int(address)))


@st.composite
def flows(draw: st.DrawFn, world: World) -> Flow:
    """Draw a connection between two addresses of one family, at least one of them a pod's."""
    own = sorted(
        {address for pod in world.pods.values() if pod.counts for address in pod.addresses}
        or {ip_address("10.244.1.1")},
        key=lambda address: (address.version, int(address)),
    )
    one = draw(st.sampled_from(own))
    other = draw(st.sampled_from([a for a in addresses(world) if a.version == one.version]))
    source, destination = (one, other) if draw(st.booleans()) else (other, one)
    return Flow(source, destination, draw(protocols), draw(st.sampled_from((*_USUAL, *PORTS))))
