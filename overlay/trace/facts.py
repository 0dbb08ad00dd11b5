"""What was observed of one packet's way: plain values, read from the kernel and the leases."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from overlay.model.address import Family, IPAddress, IPNetwork
from overlay.policy.verdict import Packet, Verdict
from overlay.trace.steps import Step

NeighborState: TypeAlias = Literal[
    "none", "incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent"
]


@dataclass(frozen=True, slots=True)
class RouteFact:
    """The kernel's answer to "which way": ``ip route get``.

    ``kind`` is the route's type (``unicast``, ``local``, ``unreachable``, ...),
    or ``refused`` with the kernel's ``error``. ``prefix`` is of the route that
    answered, None where the kernel does not say. ``mtu`` is the route's own in
    bytes, 0 for none.
    """

    kind: str
    prefix: IPNetwork | None = None
    table: int = 0
    device: str = ""
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    protocol: int = 0
    mtu: int = 0
    metric: int = 0
    error: str = ""

    @property
    def is_way(self) -> bool:
        """Return whether packets go anywhere by it."""
        return self.kind in {"unicast", "local"}


@dataclass(frozen=True, slots=True)
class RuleFact:
    """One routing rule: ``ip rule``. ``action`` is ``lookup``, or how the rule forbids.

    ``has_more`` says that it also asks for what is not known here.
    """

    priority: int
    action: str
    table: int = 0
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    iif: str = ""
    has_more: bool = False

    def __str__(self) -> str:
        """Return the words that name the rule to ``ip rule del``."""
        parts = [f"priority {self.priority}"]
        parts += [f"from {self.source or 'all'}"]
        parts += [f"to {self.destination}"] if self.destination is not None else []
        parts += [f"iif {self.iif}"] if self.iif else []
        parts += [f"lookup {self.table}" if self.action == "lookup" else self.action]
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class LinkFact:
    """One interface; ``mtu`` in bytes. ``vni`` and ``port`` are 0 unless it is a VXLAN device."""

    name: str
    mtu: int
    mac: str = ""
    is_up: bool = True
    has_carrier: bool = True
    vni: int = 0
    port: int = 0
    local: IPAddress | None = None
    lower: str = ""
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class NeighborFact:
    """What a device knows of a next hop: ``ip neigh show ADDRESS dev DEVICE``."""

    address: IPAddress
    state: NeighborState = "none"
    mac: str = ""


@dataclass(frozen=True, slots=True)
class Hop:
    """One routing decision: the route, its device, and the next hop's neighbor entry.

    ``cover`` is the route that forbids, or would take, what was refused.
    ``rule`` is the rule of others that led to the route's table, or forbids.
    """

    destination: IPAddress
    route: RouteFact
    link: LinkFact | None = None
    neighbor: NeighborFact | None = None
    cover: RouteFact | None = None
    rule: RuleFact | None = None


@dataclass(frozen=True, slots=True)
class PodEnd:
    """A pod of this node: what its attachment says, and what is there of it.

    ``inside`` is its interface, ``outside`` the host's end, ``routed`` the
    device that the node routes by: the host's end, or the bridge that it is a
    port of. ``gateway`` is what its default route should name, ``hop`` its way
    to the other party. ``trouble`` says why its namespace cannot be entered,
    ``unseen`` why nobody could from here, whatever the pod is like.
    """

    shown: str
    container: str
    interface: str
    sandbox: str
    address: IPAddress
    link: str
    inside: LinkFact | None = None
    outside: LinkFact | None = None
    routed: LinkFact | None = None
    gateway: IPAddress | None = None
    has_address: bool = True
    hop: Hop | None = None
    trouble: str = ""
    unseen: str = ""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The VXLAN device on the way out, and what it makes of the packet.

    ``destinations`` are what the forwarding table says for the next hop's
    MAC. ``outer`` is the encapsulated packet, ``hop`` its way, ``lower`` the
    interface that the device stands on.
    """

    link: LinkFact
    destinations: tuple[IPAddress, ...] = ()
    outer: Packet | None = None
    hop: Hop | None = None
    output: tuple[Verdict, ...] = ()
    lower: LinkFact | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A tunnel packet that comes in: the device that takes it, and the verdicts on its outside."""

    link: LinkFact | None
    outer: Packet
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Leg:
    """One direction of the way, on this node.

    ``entry`` says where the packet comes from: a pod of this node, the node
    itself, a tunnel, or another interface. ``hop`` is None where a pod's own
    side ends the way before. ``peer`` is the way to the other party's subnet.
    ``forwarding_off`` is the sysctl, by its path, that keeps the node from
    forwarding the packet; empty where none does.
    ``has_rule`` says whether pods' packets to nodes are routed by our table.
    """

    packet: Packet
    entry: Literal["pod", "node", "tunnel", "outside"]
    source: PodEnd | None = None
    arrival: Arrival | None = None
    forwarding_off: str = ""
    has_rule: bool = True
    prerouting: tuple[Verdict, ...] = ()
    hop: Hop | None = None
    peer: Hop | None = None
    passing: tuple[Verdict, ...] = ()  # of the hook forward, input or output
    postrouting: tuple[Verdict, ...] = ()
    tunnel: Tunnel | None = None
    delivery: PodEnd | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A node by its lease. ``vnis`` and ``macs`` are keyed by the underlay's family."""

    node: str
    networks: tuple[IPNetwork, ...]
    public: Mapping[Family, IPAddress] = field(default_factory=dict)
    macs: Mapping[Family, str] = field(default_factory=dict)
    vnis: Mapping[Family, int] = field(default_factory=dict)
    backend: str = ""
    problem: str = ""

    def network(self, family: Family) -> IPNetwork | None:
        """Return its subnet of ``family``."""
        return next((n for n in self.networks if n.version == family.value), None)


@dataclass(frozen=True, slots=True)
class Party:
    """One end of the question, and what is known of who has the address.

    ``kind``: a ``pod`` (an address in a leased subnet), a ``node``, or
    ``other``: outside the fabric, or of nobody.
    """

    asked: str
    address: IPAddress
    kind: Literal["pod", "node", "other"]
    is_here: bool = False
    holder: Holder | None = None

    @property
    def node(self) -> str:
        """Return the name of the node that has it."""
        return self.holder.node if self.holder is not None else ""


@dataclass(frozen=True, slots=True)
class FarHalf:
    """What the other party's node said of its own half: of the packet, and of its answer.

    Both are empty where it said nothing; then that half is assumed, and
    ``why`` says why it was not asked or gave no answer.
    """

    there: tuple[Step, ...] = ()
    back: tuple[Step, ...] = ()
    why: str = ""

    @property
    def because(self) -> str:
        """Return ``why`` behind an assumption."""
        return f" ({self.why})" if self.why else ""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that ``explain`` decides by.

    ``tunnels`` are the VXLAN devices by the underlay's family. ``far`` is the
    far node's own half.
    ``knows_leases`` is False where neither agent nor store answered: then
    nothing is expected of peers. ``notes`` are what could not be read.
    """

    source: Party
    destination: Party
    own: Holder | None
    forward: Leg
    back: Leg | None = None
    knows_leases: bool = True
    has_table: bool = True
    tunnels: Mapping[Family, LinkFact] = field(default_factory=dict)
    far: FarHalf = FarHalf()
    notes: tuple[str, ...] = ()
