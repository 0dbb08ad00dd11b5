"""What a backend is: how packets get from this node to a peer.

Backends are found through the entry-point group ``overlay.backends``; the
name of the entry point is the config's ``Backend.Type``. Each is a class that
is made from the fabric's config and this node, and then only plans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from overlay.model.address import Family, IPAddress
from overlay.model.errors import OverlayError
from overlay.model.kernel import KernelObject
from overlay.model.lease import Lease
from overlay.model.network import NetworkConfig
from overlay.model.node import NodeIdentity, Underlay


class PeerError(OverlayError):
    """A lease cannot be used as a peer; the others are."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What the firewall must know of a backend that encapsulates: UDP port, VNI, devices.

    ``devices`` is keyed by the underlay's family.
    """

    port: int
    vni: int
    devices: Mapping[Family, str]


class Backend(Protocol):
    """Plans one node's part of the fabric.

    Made with ``(config, node)``; the constructor raises ConfigError for
    options that it does not take, naming ``Backend.KEY``.
    """

    def __init__(self, config: NetworkConfig, node: NodeIdentity) -> None: ...

    @property
    def tunnel(self) -> Tunnel | None:
        """Return what encapsulates, or None where packets travel as they are."""

    def mtu(self, underlay: Underlay) -> int:
        """Return the largest packet, in bytes, that a pod may send."""

    def lease_data(self, underlay: Underlay) -> Mapping[Family, Mapping[str, Any]]:
        """Return what peers must know of this node, by the underlay's family.

        Raises UnderlayError when the underlay lacks a family that the
        network's config enables.
        """

    def local(self, own: Lease, underlay: Underlay) -> Sequence[KernelObject]:
        """Return what this node needs whatever its peers are: devices, addresses, rules."""

    def peer(self, own: Lease, peer: Lease, underlay: Underlay) -> Sequence[KernelObject]:
        """Return what carries packets to ``peer``. Raises PeerError."""

    def node_addresses(self, peer: Lease) -> Sequence[IPAddress]:
        """Return the underlay addresses that ``peer`` sends from."""


class UnderlayError(OverlayError):
    """The underlay interface does not exist or lacks what the network needs."""

    exit_code = 4
