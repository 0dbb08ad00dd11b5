"""One node: what survives its agents, and the agent that now runs there.

The agent is ``overlayd``'s own (``overlay.agent.main.Agent``) with its store,
lessee, planner and reconciler; what it takes from its machine is virtual.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path
from typing import Final

from overlay.agent.files import read_subnet_file
from overlay.agent.firewall import Outcome
from overlay.agent.flags import Flags, parse_flags
from overlay.agent.host import Host
from overlay.agent.main import Agent
from overlay.kernel.notices import Change, Notice
from overlay.kernel.underlay import UnderlayFlags
from overlay.model.address import FAMILIES, Family, IPAddress
from overlay.model.lease import Lease, LeaseView
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.node import NodeIdentity, Underlay
from overlay.model.subnet import Subnet
from overlay.plan.backend import Backend, UnderlayError
from overlay.plan.planner import Site
from overlay.plan.registry import load_backend
from overlay.policy.egress import Nodes
from tests.sim.kernel import Blame, SimKernel
from tests.sim.loop import Bell, Loop, Process
from tests.sim.store import MakeStore, SimStore
from tests.sim.wire import FakeClient, FakeStream, Wire

TTL_S: Final = 60
MARGIN_S: Final = 20
AUDIT_S: Final = 30
PRUNE_S: Final = 20
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


@cache
def flags_of(name: str, endpoints: tuple[str, ...]) -> Flags:
    """Return what a node's agent is told."""
    words = [
        f"--etcd-endpoints={','.join(endpoints)}",
        f"--node-name={name}",
        f"--subnet-lease-ttl={TTL_S}s",
        f"--subnet-lease-renew-margin={MARGIN_S}s",
        f"--audit-interval={AUDIT_S}s",
        f"--prune-delay={PRUNE_S}s",
        "--state-dir=/nowhere",
        "--healthz-port=0",
    ]
    return parse_flags(words, {})


class SimFilter:
    """A packet filter that remembers what it was given."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self.nodes: Nodes = {family: frozenset() for family in FAMILIES}

    def filter(
        self,
        site: Site,
        nodes: Nodes,
        *,
        direct: bool,
        audit: bool,
        told: Sequence[int] = (),
    ) -> Outcome:
        """Take over what the filter lets pass."""
        del direct, audit, told
        self.site, self.nodes = site, nodes
        return Outcome()

    def surroundings(self, site: Site, checksums: str) -> Outcome:
        """Do nothing."""
        del site
        return Outcome()


@dataclass(slots=True)
class Known:
    """What the process that runs on a node was told, for the invariants to judge by."""

    views: list[LeaseView] = field(default_factory=list)
    seen_at: float = 0.0  # when the last view came
    claimed_at: float = 0.0  # when the last claim came back
    is_in_store: bool = False  # whether the lessee waits for a call of the store
    grace_s: float = 0.0  # for which it may go on as if it had not seen that
    doubt_since: float | None = None  # since when it has a view in which its lease is not its own


class SimNode:
    """A machine with its kernel, disk and clocks; ``start`` and ``kill`` are for the loop."""

    def __init__(
        self, number: int, loop: Loop, wire: Wire, make_store: MakeStore, blame: Blame
    ) -> None:
        self.name = f"n{number}"
        self.host_number = number
        self.loop = loop
        self.wire = wire
        self.blame = blame
        self.flags = flags_of(self.name, tuple(wire.servers))
        self.kernel = SimKernel(loop, self.name, blame)
        self.kernel.notices = self.hear
        self.subnet_file: str | None = None
        self.wall_offset_s = 0.0
        self.suspended_s = 0.0
        self.has_underlay = True
        self.process: Process | None = None
        self.agent: Agent | None = None
        self.known = Known()
        self.filter = SimFilter()
        self.starts = 0
        self.calm_since = 0.0  # since when nothing was wrong with it, its network or the store
        self.wants_wall_clock = False
        self.amend: Callable[[Agent], None] = lambda _agent: None  # by a bug to plant
        self.on_view: Callable[[LeaseView], None] = lambda _view: None
        self.on_claim: Callable[[str, Lease], None] = lambda _author, _lease: None
        self._addresses: set[IPAddress] = set()  # all it ever had
        self._make_store = make_store

    @property
    def is_running(self) -> bool:
        """Return whether there is an agent."""
        return self.process is not None and self.process.is_alive

    def clock(self) -> float:
        """Return the node's monotonic clock, which stands still while the machine sleeps."""
        if self.wants_wall_clock:
            return self.loop.now + self.wall_offset_s
        return self.loop.now - self.suspended_s

    def boot_clock(self) -> float:
        """Return the node's clock that goes on while the machine sleeps."""
        return self.loop.now + (self.wall_offset_s if self.wants_wall_clock else 0.0)

    def wall_clock(self) -> datetime:
        """Return the node's time of day, which anybody may set."""
        return _EPOCH + timedelta(seconds=self.loop.now + self.wall_offset_s)

    def start(self) -> None:
        """Start an agent."""
        if self.is_running:
            return
        self.starts += 1
        self.known = Known()
        process = Process(self.loop, self.name, self._fault)
        self.process = self.kernel.process = process
        self.filter = SimFilter()
        store = self.open_store(process)
        host = Host(
            wall_clock=self.wall_clock,
            boot_clock=self.boot_clock,
            bell=lambda: Bell(process),
            kernel=lambda: self.kernel,
            firewall=lambda _own: self.filter,
            load_backend=_load_backend,
            find_underlay=self.find_underlay,
            check_devices=lambda _tunnel, _node, _underlay: None,
            read_subnet_file=self._read_subnet,
            write_file=self._write_file,
        )
        self.agent = agent = Agent(self.flags, store, self.clock, host)
        self.amend(agent)
        process.spawn("watch", agent._watch)
        process.spawn("lessee", lambda: self._lease(agent))
        process.spawn("reconciler", lambda: agent.reconciler.run(agent.stop))

    def open_store(self, process: Process, node: str = "") -> SimStore:
        """Return a store as a process of this node reaches it; ``node`` is who signs its writes."""
        draw = self.loop.random
        wire, name = self.wire, node or self.name
        timeout_s = max(self.flags.etcd.timeout_s / len(wire.servers), 1.0)
        store = self._make_store(
            self.flags.etcd,
            clock=self.boot_clock,
            choose=draw.randrange,
            sleep=process.sleep,
            uniform=draw.uniform,
            dial=lambda url: FakeClient(wire, process, name, url, timeout_s),
            open_stream=FakeStream,
        )
        store.process = process
        store.known = self.known
        store.delivered = self.on_view
        store.claimed = self.on_claim
        return store

    def kill(self) -> None:
        """End the agent as kill -9 does."""
        if self.process is not None:
            self.process.kill()

    def freeze(self, seconds: float, *, is_suspended: bool) -> None:
        """Stop the machine for a while; a suspended one's monotonic clock stops too."""
        if self.process is None:
            return
        until = max(self.process.frozen_until, self.loop.now + seconds)
        if is_suspended:
            self.suspended_s += until - max(self.process.frozen_until, self.loop.now)
        self.process.frozen_until = until

    def asleep_s(self) -> float:
        """Return for how long the machine will still stand still."""
        return self.process.frozen_until - self.loop.now if self.process is not None else 0.0

    def move(self, number: int) -> None:
        """Give the node another address; the kernel tells of it."""
        self.host_number = number
        if self.agent is not None and self.is_running and self.agent.status.get().site is not None:
            self.agent.lessee.wake()

    def believes(self) -> Subnet | None:
        """Return the subnet that a pod would get an address of now."""
        if not self.is_running or self.agent is None:
            return None
        return self.agent.status.get().subnet_at(self.boot_clock())

    def find_underlay(self, flags: UnderlayFlags, families: Iterable[Family]) -> Underlay:
        """Return the node's interface."""
        del flags
        if not self.has_underlay:
            msg = "underlay eth0 is down"
            raise UnderlayError(msg)
        addresses = {
            Family.IPV4: ip_interface((int(IPv4Address("192.0.2.0")) + self.host_number, 24)),
            Family.IPV6: ip_interface(
                (IPv6Address(int(IPv6Address("2001:db8::")) + self.host_number), 64)
            ),
        }
        self._addresses |= {interface.ip for interface in addresses.values()}
        chosen = {family: addresses[family] for family in families}
        return Underlay("eth0", 1500, chosen, {f: i.ip for f, i in chosen.items()})

    def had(self, address: IPAddress) -> bool:
        """Return whether the node has or had that address."""
        return address in self._addresses

    def _lease(self, agent: Agent) -> None:
        agent._lease()
        # Only what an operator must mend ends the lessee; systemd starts the agent again.
        assert agent.lessee.fatal is not None
        self.loop.after(0.0, self.kill)
        self.loop.after(3.0, self.start)

    def hear(self, notice: Notice) -> None:
        """Tell the agent what others did to the kernel, or fail to, as a full buffer does."""
        agent = self.agent
        if agent is None or not self.is_running or self.loop.random.random() < 0.2:
            if isinstance(notice, Change):
                self.kernel.unheard.add(notice.key)
            return
        delay_s = self.loop.random.uniform(0, 0.01)
        self.loop.after(delay_s, lambda: agent.reconciler.tell([notice]))

    def _fault(self, where: str, error: BaseException) -> None:
        self.blame(f"{where} ends by {type(error).__name__}: {error}")

    def _read_subnet(self, path: Path) -> Subnet | None:
        del path
        return _parse_subnet_file(self.subnet_file)

    def _write_file(self, path: Path, text: str) -> None:
        if path == self.flags.subnet_file:
            if not self.is_running:
                return
            self.subnet_file = text


def _load_backend(config: NetworkConfig, node: NodeIdentity) -> Backend:
    backend: Backend = load_backend_factory(config.backend.type)(config, node)
    return backend


@cache
def load_backend_factory(kind: str) -> Callable[..., Backend]:
    """Return the class behind an entry point; looking one up takes a millisecond."""
    config = parse_network_config(f'{{"Network":"10.0.0.0/8","Backend":{{"Type":"{kind}"}}}}')
    return type(load_backend(config, NodeIdentity("x", "x")))


@cache
def _parse_subnet_file(text: str | None) -> Subnet | None:
    if text is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".env") as file:
        file.write(text)
        file.flush()
        return read_subnet_file(Path(file.name))
