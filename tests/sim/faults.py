"""What can go wrong, each with its weight; the seed draws when and to whom."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from overlay.model.address import Family, MacAddress
from overlay.model.errors import OverlayError
from overlay.model.lease import LeaseAttributes, format_attributes
from overlay.model.subnet import Subnet, parse_subnet
from overlay.store.base import StoreError
from tests.sim import etcd
from tests.sim.loop import Process
from tests.sim.node import SimNode
from tests.sim.store import SimStore

if TYPE_CHECKING:
    from tests.sim.world import World

_BAD_VALUES: Final = (b"", b"{}", b"not json", b'{"PublicIP":7,"BackendType":"vxlan"}', b"\xff")
_BAD_KEYS: Final = ("nonsense", "10.244.3.9-24", "10.244.4.0-24&junk", "10.244.300.0-24")
_BAD_CONFIGS: Final = (b"{", b'{"Netwrok":"10.0.0.0/8"}', b'{"Network":"10.244.0.0/30"}')


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens now and then."""

    name: str
    weight: float
    strike: Callable[["World"], None]


def crash(world: "World") -> None:
    """Kill an agent; it is started again, at once or later."""
    node = _node(world)
    world.say(f"{node.name} is killed")
    node.kill()
    world.later(world.loop.random.choice((0.0, 1.0, 20.0, 70.0)), node.start)


def freeze(world: "World") -> None:
    """Stop a machine, perhaps past its time to live."""
    node, draw = _node(world), world.loop.random
    seconds, is_suspended = draw.choice((1.0, 10.0, 50.0, 90.0)), draw.random() < 0.5
    world.say(f"{node.name} {'sleeps' if is_suspended else 'stands still'} for {seconds:g} s")
    node.freeze(seconds, is_suspended=is_suspended)
    world.disturbed(node)


def partition(world: "World") -> None:
    """Cut a node off from some members, or from all, past its time to live perhaps."""
    draw, node = world.loop.random, _node(world)
    urls = list(world.wire.servers)
    urls = draw.choice((urls, draw.sample(urls, 1)))
    seconds = draw.choice((2.0, 12.0, 40.0, 90.0))
    world.say(f"{node.name} is cut off from {len(urls)} members for {seconds:g} s")
    for url in urls:
        world.wire.cuts.add((node.name, url))
        world.later(seconds, partial(world.wire.heal, node.name, url))
    world.disturbed(node)


def break_watches(world: "World") -> None:
    """Break all watches of one member."""
    url = world.loop.random.choice(list(world.wire.servers))
    world.say(f"{url} drops its watches")
    world.wire.break_watches(url, "Socket closed")


def lag(world: "World") -> None:
    """Let one member's watches fall behind."""
    draw = world.loop.random
    server = draw.choice(list(world.wire.servers.values()))
    server.lag_s = draw.choice((0.0, 0.0, 0.5, 5.0))
    world.say(f"{server.url} is {server.lag_s:g} s behind")


def stuck_watches(world: "World") -> None:
    """Let watches reach a member that stands still, and calls another one."""
    server = world.loop.random.choice(list(world.wire.servers.values()))
    if not server.is_up or server.stuck_at is not None:
        return
    stuck_s = world.loop.random.choice((1.0, 5.0, 30.0))
    world.say(f"the watches of {server.url} stand still for {stuck_s:g} s")
    server.stuck_at = world.cluster.revision
    world.later(stuck_s, partial(world.wire.unstick, server.url))
    world.disturbed()


def member_down(world: "World") -> None:
    """Kill one member; with a majority left the others go on."""
    server = world.loop.random.choice(list(world.wire.servers.values()))
    down_s = world.loop.random.choice((0.5, 5.0, 30.0))
    world.say(f"{server.url} is down for {down_s:g} s")
    world.wire.stop(server.url)
    world.later(down_s, lambda: _revive(world, server.url))
    world.disturbed()


def outage(world: "World") -> None:
    """Kill all members."""
    down_s = world.loop.random.choice((1.0, 10.0, 80.0))
    world.say(f"the store is down for {down_s:g} s")
    for url in world.wire.servers:
        world.wire.stop(url)
        world.later(down_s, partial(_revive, world, url))
    world.later(down_s, lambda: _elect(world))
    world.disturbed()


def leader_loss(world: "World") -> None:
    """Lose the leader: calls fail, watches end, leases start anew with the next one."""
    world.say("the leader is gone")
    world.wire.has_leader = False
    for url in world.wire.servers:
        world.wire.break_watches(url, "etcdserver: no leader")
    world.later(world.loop.random.choice((0.5, 3.0, 15.0)), lambda: _elect(world))
    world.disturbed()


def compact(world: "World") -> None:
    """Forget history, all of it or up to some revision."""
    cluster, draw = world.cluster, world.loop.random
    revision = draw.choice((cluster.revision, draw.randint(1, cluster.revision)))
    if revision > cluster.compacted:
        world.say(f"compacted at revision {revision}")
        cluster.compact(revision)


def take_backup(world: "World") -> None:
    """Keep the store's state for later."""
    world.say(f"backup of revision {world.cluster.revision}")
    world.backups.append(world.cluster.backup())


def restore(world: "World") -> None:
    """Put the store back to a backup, with the cluster's old id or a new one."""
    draw = world.loop.random
    if not world.backups:
        take_backup(world)
        return
    backup, is_new = draw.choice(world.backups), draw.random() < 0.5
    for url in world.wire.servers:
        world.wire.stop(url)
    down_s = draw.choice((1.5, 3.0, 20.0))  # all members stop, and elect a leader anew
    world.say(f"the store will be put back to revision {backup.revision} in {down_s:g} s")

    def put_back() -> None:
        world.say(f"the store is put back to revision {backup.revision}, new id: {is_new}")
        world.put_back(backup, is_new_cluster=is_new)

    world.later(down_s, put_back)
    world.disturbed()


def set_wall_clock(world: "World") -> None:
    """Set a node's time of day."""
    node = _node(world)
    node.wall_offset_s += world.loop.random.choice((-7200.0, -60.0, 45.0, 3600.0))
    world.say(f"the wall clock of {node.name} is off by {node.wall_offset_s:g} s")


def drift(world: "World") -> None:
    """Change what an agent made in its kernel."""
    node = _node(world)
    what = node.kernel.disturb(
        world.loop.random.choice(("delete", "delete", "change", "add", "flush"))
    )
    world.say(f"somebody in the kernel of {node.name}: {what}")


def move(world: "World") -> None:
    """Give a node another address, now and then one that another node has just left."""
    draw, node = world.loop.random, _node(world)
    used = {other.host_number for other in world.nodes}
    number = draw.choice([n for n in range(1, 20) if n not in used])
    world.say(f"{node.name} moves to 192.0.2.{number}")
    node.move(number)
    world.disturbed(node)


def underlay_down(world: "World") -> None:
    """Take a node's interface away for a while."""
    node = _node(world)
    world.say(f"the underlay of {node.name} is down")
    node.has_underlay = False

    def up() -> None:
        node.has_underlay = True
        node.move(node.host_number)

    world.later(world.loop.random.choice((1.0, 15.0)), up)
    world.disturbed(node)


def spoil(world: "World") -> None:
    """Write nonsense over a lease, or under a key that is none."""
    draw = world.loop.random
    keys = [key for key in sorted(world.cluster.keys) if b"/subnets/" in key]
    if keys and draw.random() < 0.6:
        key = draw.choice(keys)
        before = world.cluster.keys[key]
        lease = before.lease if draw.random() < 0.7 else 0
        value = draw.choice(_BAD_VALUES)
        world.cluster.transact("somebody", [], [etcd.Put(key, value, lease)])
    else:
        world.put(_key(draw.choice(_BAD_KEYS)), draw.choice(_BAD_VALUES), 30)


def delete_lease(world: "World") -> None:
    """Delete any key below ``subnets``."""
    keys = [key for key in sorted(world.cluster.keys) if b"/subnets/" in key]
    if keys:
        world.put(world.loop.random.choice(keys), None)


def flannel_claims(world: "World") -> None:
    """Let a node of flannel take a free subnet, as flannel does."""
    draw = world.loop.random
    subnet = _subnet(draw.randrange(1, 16))
    value = flannel_value(draw.randrange(100, 110))
    lease = world.cluster.grant(draw.choice((20, 60)))
    key = _key(subnet.key)
    world.cluster.transact(
        "flannel", [etcd.Compare("create", key, 0)], [etcd.Put(key, value, lease)]
    )


def flannel_steals(world: "World") -> None:
    """Let a node of flannel that was away write over whoever has its subnet now."""
    draw = world.loop.random
    keys = [key for key in sorted(world.cluster.keys) if b"/subnets/" in key]
    if keys:
        world.put(draw.choice(keys), flannel_value(draw.randrange(100, 110)), 60)


def write_config(world: "World") -> None:
    """Write another network config, or nonsense, or delete it."""
    from tests.sim.world import CONFIGS

    draw = world.loop.random
    value = draw.choice((*(c.encode() for c in CONFIGS * 2), *_BAD_CONFIGS, None))
    world.put(b"/coreos.com/network/config", value)


def reserve(world: "World") -> None:
    """Let an operator reserve a subnet, or make a live lease permanent."""
    draw = world.loop.random
    subnet, name = _subnet(draw.randrange(1, 16)), draw.choice(("", *(n.name for n in world.nodes)))
    _operate(world, f"reserves {subnet} for {name or 'its holder'}",
             lambda store: store.reserve(subnet, name))  # fmt: skip


def release(world: "World") -> None:
    """Let an operator release some lease."""
    draw = world.loop.random

    def pick(store: SimStore) -> None:
        leases = sorted(store.view().leases.values(), key=lambda lease: lease.subnet.key)
        if leases:
            store.release(draw.choice(leases))

    _operate(world, "releases a lease", pick)


FAULTS: Final = tuple(
    Fault(strike.__name__, weight, strike)
    for strike, weight in (
        (crash, 4), (freeze, 2), (partition, 4), (break_watches, 2), (lag, 1), (stuck_watches, 1),
        (member_down, 2),
        (outage, 1), (leader_loss, 1), (compact, 2), (take_backup, 1), (restore, 1),
        (set_wall_clock, 1), (drift, 3), (move, 1), (underlay_down, 1), (spoil, 2),
        (delete_lease, 2), (flannel_claims, 1), (flannel_steals, 1), (write_config, 1),
        (reserve, 1), (release, 2),
    )
)  # fmt: skip


def _operate(world: "World", what: str, action: Callable[[SimStore], Any]) -> None:
    operator = world.operator
    process = Process(world.loop, "operator", operator._fault)
    store = operator.open_store(process, "operator")
    world.say(f"the operator {what}")

    def run() -> None:
        try:
            action(store)
        except (StoreError, OverlayError) as exc:
            world.say(f"the operator is told: {exc}")

    process.spawn("overlayctl", run)


def _revive(world: "World", url: str) -> None:
    world.wire.servers[url].is_up = True


def _elect(world: "World") -> None:
    world.wire.has_leader = True
    world.cluster.elect()
    world.watch_expiry()


def _node(world: "World") -> SimNode:
    return world.loop.random.choice(world.nodes)


def _subnet(number: int) -> Subnet:
    return parse_subnet(f"10.244.{number}.0/24")


def _key(name: str) -> bytes:
    return f"/coreos.com/network/subnets/{name}".encode()


def flannel_value(number: int) -> bytes:
    """Return what a node of flannel writes into its lease; ``number`` tells it from others."""
    address = ip_address(f"192.0.2.{number}")
    mac = MacAddress(f"02:00:00:00:00:{number:02x}")
    data = {Family.IPV4: {"VNI": 1, "VtepMAC": mac}}
    return format_attributes(LeaseAttributes("vxlan", {Family.IPV4: address}, data))
