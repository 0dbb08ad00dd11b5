"""Who may talk to whom: pods with labels, and policies over them, as values.

The shapes are those of ``networking.k8s.io/v1`` NetworkPolicy and of
``policy.networking.k8s.io/v1alpha2`` ClusterNetworkPolicy, with the API's
defaults made explicit: what an object says by leaving a field out, these say
by a value. ``overlay.policy`` reads objects into them and decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from overlay.model.address import IPAddress, IPNetwork

if TYPE_CHECKING:
    from overlay.model.cluster_policy import ClusterNetworkPolicy

NAME_LABEL: Final = "kubernetes.io/metadata.name"  # every namespace has its name as a label
Labels: TypeAlias = Mapping[str, str]


class Protocol(Enum):
    """A transport protocol with ports, by its IP protocol number."""

    TCP = 6
    UDP = 17
    SCTP = 132


class Operator(Enum):
    """How a requirement looks at a label (LabelSelectorRequirement)."""

    IN = "In"
    NOT_IN = "NotIn"  # also true where the label is absent
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of ``matchExpressions``; ``values`` is empty for the two that take none."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def is_met(self, labels: Labels) -> bool:
        """Return whether ``labels`` meet it."""
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return self.key not in labels or labels[self.key] not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.DOES_NOT_EXIST:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector: all requirements must be met; none at all selects everything.

    ``matchLabels`` are requirements of the operator In with one value.
    """

    requirements: tuple[Requirement, ...] = ()

    def selects(self, labels: Labels) -> bool:
        """Return whether something with ``labels`` is selected."""
        return all(requirement.is_met(labels) for requirement in self.requirements)


EVERYTHING: Final = Selector()


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Pods in the selected namespaces; ``namespaces`` is None for the policy's own."""

    pods: Selector = EVERYTHING
    namespaces: Selector | None = None


@dataclass(frozen=True, slots=True)
class BlockPeer:
    """``ipBlock``: addresses inside ``block``, outside of all of ``holes`` (``except``)."""

    block: IPNetwork
    holes: tuple[IPNetwork, ...] = ()


Peer: TypeAlias = PodPeer | BlockPeer


@dataclass(frozen=True, slots=True)
class PortMatch:
    """One entry of ``ports``.

    ``port`` is None for every port, a number, or the name of a container's
    port, which each target pod resolves for itself. ``last`` ends a range
    (``endPort``) and stands beside a number only.
    """

    protocol: Protocol = Protocol.TCP
    port: int | str | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What one entry of ``ingress`` or ``egress`` allows: any of ``peers``, on any of ``ports``.

    None means that the list was absent or empty, which in the API is everybody
    and everything. A tuple is never empty.
    """

    peers: tuple[Peer, ...] | None = None
    ports: tuple[PortMatch, ...] | None = None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """One policy. ``ingress`` or ``egress`` of None leaves that direction alone.

    An empty tuple isolates the selected pods in that direction and allows
    nothing (``policyTypes`` and its defaults are resolved into this).
    """

    namespace: str
    name: str
    pods: Selector = EVERYTHING
    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Return namespace and name, which no two policies share."""
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A container's port that has a name."""

    name: str
    number: int
    protocol: Protocol = Protocol.TCP


PodKey: TypeAlias = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as policies see it.

    One in the host's network (``is_on_host``) is its node to everybody: no
    policy selects it, and no pod selector does. One that has finished
    (Succeeded or Failed) has no addresses any more, whatever its object says.
    ``uid`` tells it from another of its name, where the source knows that.
    """

    namespace: str
    name: str
    addresses: frozenset[IPAddress]
    labels: Labels = field(default_factory=dict)
    node: str = ""
    ports: tuple[NamedPort, ...] = ()
    is_on_host: bool = False
    is_finished: bool = False
    uid: str = ""

    @property
    def key(self) -> PodKey:
        """Return namespace and name."""
        return self.namespace, self.name

    @property
    def counts(self) -> bool:
        """Return whether the pod has addresses of its own that policies are about."""
        return not self.is_on_host and not self.is_finished


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace; its labels have ``NAME_LABEL`` among them."""

    name: str
    labels: Labels


@dataclass(frozen=True, slots=True)
class World:
    """Everything that policies are about, at one moment.

    ``namespaces`` are labels by name, with ``NAME_LABEL`` among them; a
    namespace that pods are in and that is not known has that label alone.
    ``nodes`` are the addresses of every node, by its name, and ``node_labels``
    their labels. ``cluster_policies`` count only where the admin tier is on.
    """

    pods: Mapping[PodKey, Pod] = field(default_factory=dict)
    namespaces: Mapping[str, Labels] = field(default_factory=dict)
    policies: Mapping[tuple[str, str], NetworkPolicy] = field(default_factory=dict)
    nodes: Mapping[str, frozenset[IPAddress]] = field(default_factory=dict)
    node_labels: Mapping[str, Labels] = field(default_factory=dict)
    cluster_policies: Mapping[str, "ClusterNetworkPolicy"] = field(default_factory=dict)

    def namespace_labels(self, name: str) -> Labels:
        """Return the labels of a namespace, known or not."""
        return self.namespaces.get(name) or {NAME_LABEL: name}


@dataclass(frozen=True, slots=True)
class Flow:
    """The first packet of a connection, as a node forwards it: after DNAT, before SNAT.

    ``port`` is the destination's.
    """

    source: IPAddress
    destination: IPAddress
    protocol: Protocol
    port: int
