"""The admin tier: policies over the whole cluster, as values.

The shape is that of ``policy.networking.k8s.io/v1alpha2`` ClusterNetworkPolicy
(kubernetes-sigs/network-policy-api, ``apis/v1alpha2``). Unlike those of
NetworkPolicy its rules have an order and an action, and the first that matches
counts.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from overlay.model.netpol import BlockPeer, PodPeer, PortMatch, Selector


class Tier(Enum):
    """When a policy is asked: Admin before NetworkPolicy, Baseline where none selects the pod."""

    ADMIN = "Admin"
    BASELINE = "Baseline"


class Action(Enum):
    """What a rule does with what it matches; Pass goes on to the next tier."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"  # noqa: S105 - an action


@dataclass(frozen=True, slots=True)
class NodePeer:
    """The addresses of the selected nodes. Only egress has it."""

    nodes: Selector


@dataclass(frozen=True, slots=True)
class NamedPortMatch:
    """A port by its container's name, of whichever protocol (``destinationNamedPort``)."""

    name: str


ClusterPeer: TypeAlias = PodPeer | BlockPeer | NodePeer
ClusterPort: TypeAlias = PortMatch | NamedPortMatch


@dataclass(frozen=True, slots=True)
class ClusterRule:
    """One rule, for any of ``peers`` on any of ``ports``; None is everybody and everything.

    In the API a rule always has peers. One with peers that are not understood
    fails closed: to accept it matches nobody (an empty tuple), else it denies
    everybody (None). The namespaces of a PodPeer are never None here.
    """

    action: Action
    peers: tuple[ClusterPeer, ...] | None
    ports: tuple[ClusterPort, ...] | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class ClusterNetworkPolicy:
    """One policy. A lower ``priority`` (0 to 1000) is asked first in its tier."""

    name: str
    tier: Tier
    priority: int
    subject: PodPeer
    ingress: tuple[ClusterRule, ...] = ()
    egress: tuple[ClusterRule, ...] = ()

    @property
    def names_nodes(self) -> bool:
        """Return whether addresses of nodes matter to it."""
        return any(isinstance(peer, NodePeer) for rule in self.egress for peer in rule.peers or ())
