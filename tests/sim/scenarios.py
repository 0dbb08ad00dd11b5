"""Histories whose faults are chosen, where chance needs too many seeds to find their order."""

from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.sim import etcd
from tests.sim.faults import flannel_value
from tests.sim.invariants import CONFIG, SUBNETS
from tests.sim.node import TTL_S, SimNode
from tests.sim.world import CONFIGS, World

_HOUR_S: Final = 3600.0
_BACK_S: Final = 2.0  # from the return of the store until all is right

Scenario = Callable[[World], None]


def revision_given_out_twice(world: World) -> None:
    """A store that was put back gives one key the same revision again, for another node."""
    one, other, *_ = world.nodes
    world.put(CONFIG, CONFIGS[0].encode())
    backup = world.cluster.backup()
    one.start()
    world.advance(5)
    first = _key_of(world, one)
    one.freeze(38, is_suspended=False)  # when it wakes, its renewal is due, before all else
    world.put_back(backup, is_new_cluster=False)
    other.subnet_file = one.subnet_file
    other.start()
    world.advance(5)
    again = _key_of(world, other)
    assert (again.key, again.mod_revision) == (first.key, first.mod_revision)
    world.disturbed()
    world.settle()


def revision_overtaken(world: World) -> None:
    """A store that was put back is past a node's revision again, by other leases."""
    one = _begin(world)
    backup = world.cluster.backup()
    _flannel(world, 3)
    world.advance(2)
    _cut_off(world, one)
    world.put_back(backup, is_new_cluster=False)
    _flannel(world, 4)
    _flannel(world, 5)
    world.advance(10)
    world.disturbed()
    world.settle()


def config_of_another_history(world: World) -> None:
    """A store that was put back has a config of the same revision again, which says another."""
    one = _begin(world)
    backup = world.cluster.backup()
    world.put(CONFIG, b'{"Network":"10.244.0.0/19"}')
    world.advance(2)
    seen = world.cluster.keys[CONFIG]
    _cut_off(world, one)
    world.put_back(backup, is_new_cluster=False)
    world.put(CONFIG, CONFIGS[0].encode())
    world.advance(10)
    assert world.cluster.keys[CONFIG].mod_revision == seen.mod_revision
    world.disturbed()
    world.settle()


def cut_off_past_the_end(world: World) -> None:
    """A node whose claim was answered late is cut off; its lease ends, and others may have it."""
    world.put(CONFIG, CONFIGS[0].encode())
    one = world.nodes[0]
    world.wire.delay = lambda: 0.7  # type: ignore[method-assign]  # each message's, in seconds
    one.start()
    world.advance(20)
    assert one.believes() is not None
    _cut_off(world, one)
    world.advance(TTL_S + 5)
    assert one.believes() is None or world.invariants.violations
    del world.wire.delay
    world.disturbed()
    world.settle()


def away_for_an_hour(world: World) -> None:
    """All members are down for an hour: nobody asks ever more often, all come back in time."""
    _begin(world)
    calls = Counter[str]()
    judge = world.wire.called

    def called(name: str) -> None:
        calls[name] += 1
        judge(name)

    world.wire.called = called
    world.steps_most *= 4
    for url in world.wire.servers:
        world.wire.stop(url)
    world.advance(_HOUR_S)
    for node in world.nodes:
        # The watch asks each 0.4 to 0.8 s, the lessee each 30 s, each of them all members.
        most = 2.5 * _HOUR_S * (1 + 2 * len(world.wire.servers) / 30)
        assert calls[node.name] < most, f"{calls[node.name]} calls by {node.name}, not {most:.0f}"
        assert node.believes() is None, "its lease ran out long ago"
    for server in world.wire.servers.values():
        server.is_up = True
    world.disturbed()
    world.advance(_BACK_S)
    for node in world.nodes:
        assert node.believes() is not None or world.invariants.violations, "not back in time"
    world.settle()


def watches_stand_still(world: World) -> None:
    """Behind one address the watches reach a member that lags, and listings another one."""
    _begin(world)
    for url, server in world.wire.servers.items():
        server.stuck_at = world.cluster.revision - 1
        world.wire.break_watches(url, "Socket closed")
    _flannel(world, 3)
    world.advance(30)
    for node in world.nodes:
        assert node.agent is not None
        assert node.agent.status.get().store_error is not None
    world.disturbed()
    world.settle()


SCENARIOS: Final[dict[str, Scenario]] = {
    each.__name__: each
    for each in (
        revision_given_out_twice,
        revision_overtaken,
        config_of_another_history,
        away_for_an_hour,
        cut_off_past_the_end,
        watches_stand_still,
    )
}


def _begin(world: World) -> SimNode:
    world.put(CONFIG, CONFIGS[0].encode())
    for node in world.nodes:
        node.start()
    world.advance(5)
    return world.nodes[0]


def _cut_off(world: World, node: SimNode) -> None:
    for url in world.wire.servers:
        world.wire.cuts.add((node.name, url))


def _flannel(world: World, number: int) -> None:
    key = SUBNETS + f"10.244.{number}.0-24".encode()
    world.put(key, flannel_value(100 + number), 60)


def _key_of(world: World, node: SimNode) -> etcd.KeyValue:
    subnet = node.believes()
    assert subnet is not None
    return world.cluster.keys[SUBNETS + subnet.key.encode()]
