"""Kernel objects: what the agent wants in the kernel, and finds there.

Each object knows its ``key``, the kernel's own identity for it, and prints as
the ``ip`` or ``bridge`` words that would make it.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from overlay.model.address import Family, IPAddress, IPInterface, IPNetwork, MacAddress, family_of

# Protocol number of our routes (`ip route show proto 79`); none of iproute2's
# rt_protos and of those that FRR, BIRD and systemd-networkd use.
ROUTE_PROTOCOL: Final = 79
POD_ROUTE_PROTOCOL: Final = 80  # `ip route show proto 80`: routes to this node's own pods
MAIN_TABLE: Final = 254  # linux/rtnetlink.h
# Table and rule priority for what pods send to nodes: see docs/decisions/0003.
NODE_TABLE: Final = 20310
UNREACHABLE_METRIC: Final = 20310  # behind any route for the same prefix that others made
LINK_ALIAS: Final = "overlay-fabric"  # marks a device as ours, whatever its name

Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """A VXLAN device without learning, up.

    ``ip link add NAME type vxlan id VNI dstport PORT local LOCAL dev UNDERLAY nolearning``
    """

    name: str
    vni: int
    port: int
    mac: MacAddress
    mtu: int  # bytes
    local: IPAddress
    underlay: str
    gbp: bool = False
    is_up: bool = True

    @property
    def key(self) -> Key:
        """Return the kernel's identity of a link: its name."""
        return ("link", self.name)

    def __str__(self) -> str:
        gbp = " gbp" if self.gbp else ""
        return (
            f"link {self.name} type vxlan id {self.vni} dstport {self.port} local {self.local} "
            f"dev {self.underlay} nolearning{gbp} mtu {self.mtu} address {self.mac} "
            f"{'up' if self.is_up else 'down'}"
        )


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address on one of our devices: ``ip addr add ADDRESS dev DEVICE``."""

    device: str
    address: IPInterface

    @property
    def key(self) -> Key:
        """Return the kernel's identity of an address: device, address and prefix length."""
        return ("addr", self.device, self.address)

    def __str__(self) -> str:
        return f"addr {self.address} dev {self.device}"


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A permanent neighbor: ``ip neigh replace ADDRESS lladdr MAC dev DEVICE nud permanent``."""

    device: str
    address: IPAddress
    mac: MacAddress
    # The kernel's identity of a neighbor: device and address. Made once: plan and mirror share it.
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", ("neigh", self.device, self.address))

    def __str__(self) -> str:
        return f"neigh {self.address} lladdr {self.mac} dev {self.device} nud permanent"


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """Where a VTEP lives: ``bridge fdb replace MAC dev DEVICE dst ADDRESS self permanent``.

    Ours has neither ``port``, ``vni`` nor ``via`` of its own (0: the
    device's), and lasts; what others made may differ. An entry that leads to
    a nexthop object has the destination 0.0.0.0.
    """

    device: str
    mac: MacAddress
    destination: IPAddress
    port: int = 0
    vni: int = 0
    via: int = 0  # interface index
    is_lasting: bool = True
    # The kernel's identity of a forwarding entry: device and MAC. Only multicast and the all-zero
    # MAC may have several destinations (``vxlan_fdb_update_existing`` in drivers/net/vxlan), and
    # those are never ours.
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", ("fdb", self.device, self.mac))

    @property
    def is_stuck(self) -> bool:
        """Return whether it leads to a nexthop object: to replace it is accepted and does nothing.

        ``vxlan_fdb_replace`` finds no remote in such an entry (seen on Linux 6.18).
        """
        return self.destination.is_unspecified

    def __str__(self) -> str:
        parts = ((" port ", self.port), (" vni ", self.vni), (" via #", self.via))
        own = "".join(f"{name}{value}" for name, value in parts if value)
        lasts = "permanent" if self.is_lasting else "dynamic"
        return f"fdb {self.mac} dev {self.device} dst {self.destination}{own} self {lasts}"


@dataclass(frozen=True, slots=True)
class Route:
    """A route of ours: ``ip route replace PREFIX via GATEWAY dev DEVICE onlink proto 79``."""

    prefix: IPNetwork
    device: str
    gateway: IPAddress | None = None
    onlink: bool = False
    table: int = MAIN_TABLE
    metric: int = 0  # for IPv6 0 is the kernel's own, 1024
    others: str = ""  # attributes that somebody gave it besides: ours have none
    # The kernel's identity of a route: table, prefix, metric. Made once: plan and mirror share it.
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", ("route", self.table, self.prefix, self.metric))

    def __str__(self) -> str:
        via = f" via {self.gateway}" if self.gateway is not None else ""
        table = f" table {self.table}" if self.table != MAIN_TABLE else ""
        onlink = " onlink" if self.onlink else ""
        metric = f" metric {self.metric}" if self.metric else ""
        others = f" {self.others}" if self.others else ""
        where = f"dev {self.device}{onlink}{table}{metric}{others}"
        return f"route {self.prefix}{via} {where} proto {ROUTE_PROTOCOL}"


@dataclass(frozen=True, slots=True)
class ForeignRoute:
    """Somebody else's route at the prefix of ours, taken first: ``ip route del PREFIX metric M``.

    Found where ours has a metric, and never desired (docs/decisions/0004, 0012).
    """

    prefix: IPNetwork
    metric: int
    protocol: int
    device: str

    @property
    def key(self) -> Key:
        """Return the kernel's identity of a route: table, prefix and metric."""
        return ("route", MAIN_TABLE, self.prefix, self.metric)

    def __str__(self) -> str:
        metric = f" metric {self.metric}" if self.metric else ""
        return f"route {self.prefix} dev {self.device}{metric} proto {self.protocol}"


@dataclass(frozen=True, slots=True)
class UnreachableRoute:
    """Answers for what no lease covers: ``ip route add unreachable PREFIX metric 20310 proto 79``.

    Without it a packet to a pod that no peer holds would leave by the default
    route, unencapsulated (docs/decisions/0006).
    """

    prefix: IPNetwork

    @property
    def key(self) -> Key:
        """Return the kernel's identity of a route: table, prefix and metric."""
        return ("route", MAIN_TABLE, self.prefix, UNREACHABLE_METRIC)

    def __str__(self) -> str:
        return f"route unreachable {self.prefix} metric {UNREACHABLE_METRIC} proto {ROUTE_PROTOCOL}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule of ours: ``ip rule add from SOURCE lookup TABLE priority PRIORITY``."""

    source: IPNetwork
    table: int
    priority: int = NODE_TABLE

    @property
    def family(self) -> Family:
        """Return the family the rule belongs to."""
        return family_of(self.source)

    @property
    def key(self) -> Key:
        """Return the identity of a rule of ours: source, table and priority."""
        return ("rule", self.source, self.table, self.priority)

    def __str__(self) -> str:
        return f"rule from {self.source} lookup {self.table} priority {self.priority}"


KernelObject: TypeAlias = (
    VxlanLink | LinkAddress | Neighbor | FdbEntry | Route | ForeignRoute | UnreachableRoute | Rule
)
Verb: TypeAlias = Literal["set", "del"]


@dataclass(frozen=True, slots=True)
class Op:
    """One change of the kernel: set (make or change) or delete one object."""

    verb: Verb
    target: KernelObject

    def __str__(self) -> str:
        return f"{self.verb} {self.target}"
