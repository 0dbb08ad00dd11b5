"""One history: nodes, an etcd, an operator, and what the seed has in store for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from overlay.model.lease import LeaseView
from tests.sim import etcd
from tests.sim.faults import FAULTS, Fault
from tests.sim.invariants import CONFIG, SUBNETS, Invariants, read_lease
from tests.sim.loop import Loop
from tests.sim.node import SimNode
from tests.sim.store import MakeStore, SimStore
from tests.sim.wire import Weather, Wire

CONFIGS: Final = (
    '{"Network":"10.244.0.0/20"}',
    '{"Network":"10.244.0.0/20","Backend":{"Type":"vxlan","VNI":2}}',
    '{"Network":"10.244.0.0/20","SubnetLen":25}',
    '{"Network":"10.244.0.0/19","Backend":{"Type":"vxlan","MTU":1400}}',
    '{"Network":"10.244.0.0/20","EnableIPv6":true,"IPv6Network":"fd00:1::/56"}',
    '{"Network":"10.244.0.0/20","Backend":{"Type":"host-gw"}}',
)
_SETTLE_S: Final = 100.0  # a TTL, then what its end lets go is held back for a while, and a retry
_LOOKS: Final = 3
_SPOILED_MOST: Final = 5
_STEPS: Final = 60_000  # in one history: more of them is a loop


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one seed."""

    seed: int
    steps: int
    violations: Sequence[str]
    double_owners: int
    unknowing_s: float
    trace: Sequence[str] = field(default_factory=tuple)


class World:
    """All of one history. ``trace`` holds what happened, for people."""

    def __init__(
        self, seed: int, make_store: MakeStore = SimStore, *, is_traced: bool = False
    ) -> None:
        self.seed = seed
        self.loop = loop = Loop(seed)
        draw = loop.random
        self.cluster = etcd.FakeEtcd(lambda: loop.now, lambda: draw.getrandbits(62) + 1)
        self.wire = Wire(loop, self.cluster, draw.choice((1, 3)))
        self.invariants = Invariants(self.cluster, lambda: loop.now)
        self.trace: list[str] = []
        self._is_traced = is_traced
        self.backups: list[etcd.Backup] = []
        self.wire.called = self.invariants.called
        self.cluster.committed = self._committed
        self.cluster.granted = self._granted
        self.nodes = [
            SimNode(number, loop, self.wire, make_store, self.invariants.blame)
            for number in range(1, draw.choice((2, 3, 3, 4, 5)) + 1)
        ]
        self.invariants.nodes = self.nodes
        for node in self.nodes:
            node.on_view = partial(self.delivered, node)
            node.on_claim = partial(self.invariants.claimed, node)
        self.operator = SimNode(99, loop, self.wire, make_store, self.invariants.blame)
        self.is_rough = False
        self.steps_most = _STEPS
        self._rounds = 0

    def say(self, text: str) -> None:
        """Note what happens."""
        if self._is_traced:
            self.trace.append(f"{self.loop.now:9.3f}  {text}")

    def run(self, rounds: int = 1) -> Outcome:
        """Run the whole history: faults, then quiet, ``rounds`` times."""
        draw = self.loop.random
        self.put(CONFIG, draw.choice(CONFIGS).encode())
        for node in self.nodes:
            self.loop.after(draw.choice((0.0, 0.0, draw.uniform(0, 5))), node.start)
        for _ in range(rounds):
            self._rough(draw.uniform(20, 120))
            self.settle()
            if self.invariants.violations:
                break
        return self.end()

    def settle(self) -> None:
        """End all faults, and judge what has become of it when all had time enough."""
        self._calm()
        self.advance(max(0.0, *(node.asleep_s() for node in self.nodes)))
        self.disturbed()
        self.advance(_SETTLE_S)
        for look in range(_LOOKS):
            if self.invariants.violations:
                break
            if self.invariants.check_quiet(is_last=look == _LOOKS - 1):
                break
            self.advance(0.3)

    def end(self) -> Outcome:
        """Kill all and return what was found."""
        for node in (*self.nodes, self.operator):
            node.kill()
        found = self.invariants
        return Outcome(
            self.seed, self.loop.steps, found.violations, found.double_owners,
            found.unknowing_s, self.trace,
        )  # fmt: skip

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do ``action`` when so much time has passed, if all is not well by then."""
        number = self._rounds

        def act() -> None:
            if self.is_rough and number == self._rounds:
                action()

        self.loop.after(seconds, act)

    def disturbed(self, *nodes: SimNode) -> None:
        """Note that from now on ``nodes``, or all, have a reason to be late."""
        for node in nodes or self.nodes:
            node.calm_since = self.loop.now

    def put(self, key: bytes, value: bytes | None, ttl_s: int = 0) -> None:
        """Write a key as somebody without this program would; None deletes it."""
        if value is None:
            self.cluster.transact("somebody", [], [etcd.Delete(key)])
            return
        lease = self.cluster.grant(ttl_s) if ttl_s else 0
        self.cluster.transact("somebody", [], [etcd.Put(key, value, lease)])

    def put_back(self, backup: etcd.Backup, *, is_new_cluster: bool) -> None:
        """Restart all members with what a backup holds."""
        for url in self.wire.servers:
            self.wire.stop(url)
        self.cluster.restore(backup, is_new_cluster=is_new_cluster)
        self.invariants.restored()
        self.watch_expiry()
        for server in self.wire.servers.values():
            server.is_up = True

    def watch_expiry(self) -> None:
        """Look at the leases' ends when they come, after all of them have changed."""
        for lease in self.cluster.leases.values():
            self._granted(lease.ends_at)

    def _granted(self, ends_at: float) -> None:
        late_s = self.loop.random.uniform(0.0, 0.6)  # etcd looks twice a second
        self.loop.after(ends_at - self.loop.now + late_s, self.cluster.expire)

    def _committed(self, author: str, events: tuple[etcd.Event, ...]) -> None:
        for event in events:
            verb = "deletes" if event.is_delete else "puts"
            self.say(f"revision {self.cluster.revision}: {author} {verb} {event.kv.key.decode()}")
        self.invariants.committed(author, events)
        self.wire.changed()

    def _rough(self, seconds: float) -> None:
        """Let everything go wrong for a while."""
        draw = self.loop.random
        self.is_rough = True
        self.invariants.is_quiet = False
        self._rounds += 1
        self.wire.weather = Weather(
            loss=draw.choice((0.0, 0.02, 0.15)),
            slow=draw.choice((0.0, 0.05, 0.3)),
            kill=draw.choice((0.0, 0.0, 0.01)),
        )
        for node in self.nodes:
            node.kernel.fail = draw.choice((0.0, 0.0, 0.03))
            node.kernel.kill = draw.choice((0.0, 0.0, 0.02))
        self.say(f"{len(self.nodes)} nodes, {len(self.wire.servers)} members, {self.wire.weather}")
        until = self.loop.now + seconds
        mean_s = draw.choice((0.5, 2.0, 6.0))
        chosen = draw.sample(FAULTS, draw.randrange(3, len(FAULTS)))

        def strike() -> None:
            if not self.is_rough:
                return
            fault: Fault = draw.choices(chosen, [f.weight for f in chosen])[0]
            fault.strike(self)
            self.loop.after(draw.expovariate(1 / mean_s), strike)

        self.loop.after(draw.expovariate(1 / mean_s), strike)
        self._revive()
        self.advance(until - self.loop.now)

    def _revive(self) -> None:
        """Start agents that died by chance, as systemd does."""
        for node in self.nodes:
            if not node.is_running and self.is_rough and self.loop.random.random() < 0.3:
                node.start()
        if self.is_rough:
            self.loop.after(2.0, self._revive)

    def _calm(self) -> None:
        """End all faults."""
        self.say("all is well from here on")
        self.is_rough = False
        self.invariants.is_quiet = True
        self.wire.weather = Weather()
        self.wire.has_leader = True
        for url, server in self.wire.servers.items():
            server.is_up, server.lag_s = True, 0.0
            self.wire.unstick(url)
            for node in (*self.nodes, self.operator):
                self.wire.heal(node.name, url)
        for node in self.nodes:
            node.kernel.fail = node.kernel.kill = 0.0
            node.has_underlay = True
            self.loop.after(self.loop.random.uniform(0, 2), node.start)
            if self.loop.random.random() < 0.3:  # which is no fault, and nobody should care
                node.wall_offset_s -= 7200
        if self.cluster.keys.get(CONFIG) is None or not self._has_config():
            self.put(CONFIG, self.loop.random.choice(CONFIGS).encode())
        self._tidy()
        self.disturbed()

    def _tidy(self) -> None:
        """Delete what nobody can read and nothing ends, where it may leave no subnet free.

        Its subnets are rightly kept from all until an operator does so.
        """
        spoiled = [
            key
            for key, kv in sorted(self.cluster.keys.items())
            if key.startswith(SUBNETS) and not kv.lease and read_lease(kv) is None
        ]
        if len(spoiled) > _SPOILED_MOST:
            for key in spoiled:
                self.put(key, None)

    def _has_config(self) -> bool:
        return self.cluster.keys[CONFIG].value.decode(errors="replace") in CONFIGS

    def advance(self, seconds: float) -> None:
        """Run for a while, judging after every step."""
        until = self.loop.now + seconds
        while self.loop.step(until):
            self.invariants.check()
            if self.invariants.violations:
                return
            if self.loop.steps > self.steps_most:
                self.invariants.blame(f"{self.loop.steps} steps: something goes round in circles")
                return

    def delivered(self, node: SimNode, view: LeaseView) -> None:
        """Judge a view that a node's watch hands over."""
        self.say(f"{node.name} sees revision {view.revision}: {sorted(view.leases)}")
        self.invariants.delivered(node, view)
