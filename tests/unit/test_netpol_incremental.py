"""A compiler that saw other worlds before gives the table that a new one gives."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.model.address import IPAddress
from overlay.model.cluster_policy import Action, ClusterNetworkPolicy, ClusterRule, NodePeer, Tier
from overlay.model.netpol import (
    NetworkPolicy,
    Operator,
    Pod,
    PodPeer,
    PortMatch,
    Requirement,
    Rule,
    Selector,
    World,
)
from overlay.policy.network.compile import CompileOptions, PolicyCompiler, compile_policies
from overlay.policy.network.render import LogOptions
from tests.unit.policy_worlds import NODES, successors, worlds

K = TypeVar("K")
V = TypeVar("V")

_OPTIONS = st.builds(
    CompileOptions,
    st.frozensets(st.sampled_from(["x", "y"]), max_size=1),
    st.booleans(),
    st.none() | st.just(LogOptions(7)),
)
_UNKNOWN = st.frozensets(
    st.sampled_from([ip_address("10.244.0.1"), ip_address("fd00:244::9")]), max_size=1
)


@settings(deadline=None, max_examples=60)
@given(st.data(), _OPTIONS, st.sampled_from(NODES))
def test_history_does_not_matter(data: st.DataObject, options: CompileOptions, node: str) -> None:
    compiler = PolicyCompiler(node, options)
    world = data.draw(worlds())
    for _ in range(4):
        unknown = data.draw(_UNKNOWN)
        found = compiler.update(world, unknown)
        assert found == compile_policies(world, node, options, unknown)
        assert found.delta(found) == ""
        world = data.draw(successors(world))


@settings(deadline=None, max_examples=30)
@given(worlds(), st.randoms(use_true_random=False), _OPTIONS)
def test_order_does_not_matter(world: World, random: Random, options: CompileOptions) -> None:
    def shuffled(mapping: Mapping[K, V]) -> dict[K, V]:
        items = list(mapping.items())
        random.shuffle(items)
        return dict(items)

    other = replace(
        world,
        pods=shuffled(world.pods),
        policies=shuffled(world.policies),
        namespaces=shuffled(world.namespaces),
        cluster_policies=shuffled(world.cluster_policies),
    )
    first = compile_policies(world, "n1", options)
    assert str(compile_policies(other, "n1", options)) == str(first)


def test_many_changes_at_once_are_a_new_beginning() -> None:
    pods = {
        ("x", f"p{n}"): Pod("x", f"p{n}", frozenset({IPv4Address((10 << 24) + n)}), {}, "n1")
        for n in range(1200)
    }
    peer = Rule((PodPeer(Selector((Requirement("app", Operator.EXISTS),))),))
    world = World(pods, policies={("x", "a"): NetworkPolicy("x", "a", ingress=(peer,))})
    compiler = PolicyCompiler("n1")
    compiler.update(world)
    labelled = {
        key: replace(pod, labels={"app": "a"}) if n % 2 else pod
        for n, (key, pod) in enumerate(pods.items())
    }
    after = replace(world, pods=labelled)
    found = compiler.update(after)
    assert found == compile_policies(after, "n1")
    (members,) = [each for name, each in found.sets.items() if name.startswith("ov_a4_")]
    assert len(members.elements) == 600


class Nodes(dict[str, frozenset[IPAddress]]):
    """Addresses of nodes, which count how often all of them are looked at."""

    looks = 0

    def items(self) -> Any:
        self.looks += 1
        return super().items()


def test_nodes_are_looked_at_once_for_all_pods_that_may_reach_them() -> None:
    world = _isolated()
    anybody = Selector()
    own = {(n, "p"): NetworkPolicy(n, "p", anybody, egress=(Rule(),)) for n in "wxyz"}
    here = {
        (space, "c"): Pod(space, "c", frozenset({IPv4Address(f"10.0.1.{n}")}), {}, "n1")
        for n, space in enumerate("wyz", 1)
    }
    rule = ClusterRule(Action.DENY, (NodePeer(anybody),))
    policy = ClusterNetworkPolicy("c", Tier.ADMIN, 1, PodPeer(namespaces=anybody), (), (rule,))
    nodes = Nodes({f"n{n}": frozenset({ip_address(f"192.0.2.{n}")}) for n in range(1, 9)})
    world = replace(
        world,
        pods={**world.pods, **here},
        policies={**world.policies, **own},
        cluster_policies={"c": policy},
        nodes=nodes,
    )
    compiler = PolicyCompiler("n1", CompileOptions(admin_tier=True))
    first = compiler.update(world)
    assert len([name for name in first.chains if name.startswith("ov_n_")]) == len(own)
    looks = nodes.looks
    compiler.update(replace(world, policies={**world.policies, ("x", "q"): own["x", "p"]}))
    more = Nodes({**nodes, "n9": frozenset({ip_address("192.0.2.99")})})
    found = compiler.update(replace(world, nodes=more))
    assert found == compile_policies(
        replace(world, nodes=dict(more)), "n1", CompileOptions(admin_tier=True)
    )
    assert "192.0.2.99" in str(found)
    assert (nodes.looks, more.looks) == (looks, 2), "a comparison, and one set for all"


def _isolated() -> World:
    pods = [
        Pod("x", name, frozenset({IPv4Address(f"10.0.0.{n}")}), {"app": name}, "n1")
        for n, name in enumerate("ab", 1)
    ]
    policy = NetworkPolicy("x", "p", ingress=(Rule((PodPeer(),)),))
    return World({pod.key: pod for pod in pods}, policies={policy.key: policy})


def test_what_is_listed_anew_and_is_equal_changes_nothing() -> None:
    compiler = PolicyCompiler("n1")
    first = compiler.update(_isolated())
    second = compiler.update(_isolated())
    assert second.delta(first) == ""
    for name, lines in second.chains.items():
        assert first.chains[name] is lines, "it was compiled again"
    assert all(first.sets[name] is each for name, each in second.sets.items() if "_a" in name)


def test_an_error_midway_leaves_nothing_behind() -> None:
    """A value of a wrong type stands for a fault of our own: the next world is compiled whole."""
    compiler = PolicyCompiler("n1")
    start = _isolated()
    compiler.update(start)
    broken = replace(start.pods["x", "a"], ports=(None,))  # type: ignore[arg-type]  # on purpose
    named = NetworkPolicy("x", "q", ingress=(Rule(None, (PortMatch(port="http"),)),))
    after = replace(start, policies={**start.policies, named.key: named})
    with pytest.raises(AttributeError):
        compiler.update(replace(after, pods={**after.pods, broken.key: broken}))
    assert compiler.update(after) == compile_policies(after, "n1")
