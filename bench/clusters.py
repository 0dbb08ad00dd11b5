"""A cluster with policies, made by counting: equal sizes give an equal cluster.

Each namespace has ten applications; a policy of its own isolates everything,
and one for each application lets its callers in (by labels, from its own and
from other namespaces, by number and by name of a port) and out (names, its
database, a network outside). That is the form of what people write.
"""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from overlay.model.netpol import (
    EVERYTHING,
    NAME_LABEL,
    BlockPeer,
    NamedPort,
    NetworkPolicy,
    Operator,
    Pod,
    PodKey,
    PodPeer,
    PortMatch,
    Protocol,
    Requirement,
    Rule,
    Selector,
    World,
)

HERE: Final = "n0"
CLIENT: Final = ip_address("172.16.9.1")  # whom the last pod of the node lets in
_APPS: Final = 10
_V4, _V6 = int(IPv4Address("10.244.0.0")), int(IPv6Address("fd00:10:244::"))
_DNS: Final = (PortMatch(Protocol.UDP, 53), PortMatch(Protocol.TCP, 53))


def cluster(policies: int, pods: int, here: int) -> World:
    """Return a cluster of that many policies and pods, ``here`` of them on the node ``HERE``."""
    namespaces = max(1, policies // (_APPS + 1))
    per_node = max(1, here)
    return World(
        pods={pod.key: pod for pod in _pods(pods, namespaces, per_node)},
        namespaces={
            f"team-{n}": {NAME_LABEL: f"team-{n}", "stage": ("test", "live")[n % 2]}
            for n in range(namespaces)
        },
        policies={policy.key: policy for policy in _policies(policies, namespaces)},
        nodes={
            f"n{n}": frozenset({IPv4Address(f"172.16.{n // 250}.{n % 250 + 1}")})
            for n in range(-(-pods // per_node))
        },
    )


def relabeled(world: World, key: PodKey, app: int) -> World:
    """Return the cluster with one pod of another application."""
    pod = world.pods[key]
    changed = replace(pod, labels={**pod.labels, "app": f"app-{app % _APPS}"})
    return replace(world, pods={**world.pods, key: changed})


def elsewhere(world: World) -> PodKey:
    """Return a pod of another node that policies of this node's pods ask about."""
    return next(key for key, pod in world.pods.items() if pod.node != HERE)


def server(world: World) -> Pod:
    """Return the last pod of the node ``HERE``."""
    return [pod for pod in world.pods.values() if pod.node == HERE][-1]


def _pods(count: int, namespaces: int, per_node: int) -> Iterator[Pod]:
    for number in range(count):
        node, place = divmod(number, per_node)
        offset = node * 256 + place + 2
        app = (number // namespaces) % _APPS
        yield Pod(
            namespace=f"team-{number % namespaces}",
            name=f"pod-{number}",
            addresses=frozenset({IPv4Address(_V4 + offset), IPv6Address(_V6 + offset)}),
            labels={
                "app": f"app-{app}",
                "tier": ("front", "back", "data")[app % 3],
                "pod-template-hash": f"{number % 997:x}",
            },
            node=f"n{node}",
            ports=(NamedPort("http", 8000 + app), NamedPort("metrics", 9090)),
        )


def _policies(count: int, namespaces: int) -> Iterator[NetworkPolicy]:
    for number in range(count):
        kind, team = divmod(number, namespaces)
        namespace = f"team-{team}"
        if kind == 0:
            yield NetworkPolicy(namespace, "default-deny", EVERYTHING, ingress=(), egress=())
        else:
            yield _of_application(namespace, (kind - 1) % _APPS, number)


def _of_application(namespace: str, app: int, number: int) -> NetworkPolicy:
    callers = Rule(
        peers=(PodPeer(_labeled(app=f"app-{(app + 1) % _APPS}")),),
        ports=(PortMatch(port="http"), PortMatch(port=8080, last=8089)),
    )
    watchers = Rule(
        peers=(PodPeer(_labeled(tier="front"), _labeled(stage="live")),),
        ports=(PortMatch(port="metrics"),),
    )
    outside = Rule(
        peers=(
            BlockPeer(ip_network("172.16.0.0/12"), (ip_network(f"172.20.{number % 256}.0/24"),)),
        ),
    )
    ingress = (callers, watchers, outside) if app % 2 else (callers, outside)
    names = Rule(peers=(PodPeer(EVERYTHING, _labeled(stage="live")),), ports=_DNS)
    database = Rule(peers=(PodPeer(_labeled(tier="data")),), ports=(PortMatch(port=5432),))
    return NetworkPolicy(
        namespace,
        f"app-{app}-{number}",
        _labeled(app=f"app-{app}"),
        ingress=ingress,
        egress=(names, database, outside),
    )


def _labeled(**labels: str) -> Selector:
    return Selector(
        tuple(Requirement(key, Operator.IN, frozenset({value})) for key, value in labels.items())
    )
