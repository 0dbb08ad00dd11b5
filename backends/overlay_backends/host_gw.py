"""Host gateway: ``ip route replace SUBNET via PUBLIC dev UNDERLAY``, nothing else.

For nodes that share one layer 2. Packets travel as they are, at the
underlay's MTU; a peer behind a router cannot be reached and is a problem.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from overlay.model.address import Family, IPAddress
from overlay.model.kernel import KernelObject
from overlay.model.lease import Lease
from overlay.model.metric import peer_metric
from overlay.model.network import NetworkConfig, refuse_unknown
from overlay.model.node import NodeIdentity, Underlay
from overlay.plan.backend import PeerError
from overlay.plan.direct import direct_route, shared_families, underlay_address


class HostGatewayBackend:
    """Plans one route for each peer and family."""

    def __init__(self, config: NetworkConfig, node: NodeIdentity) -> None:
        del node  # peers need nothing of it
        refuse_unknown(config.backend.options, frozenset())
        self._families = config.families
        self._ranges = config.ranges

    @property
    def tunnel(self) -> None:
        """Return None: nothing encapsulates."""
        return

    def mtu(self, underlay: Underlay) -> int:
        """Return the underlay's MTU in bytes."""
        return underlay.mtu

    def lease_data(self, underlay: Underlay) -> Mapping[Family, Mapping[str, Any]]:
        """Return nothing, once the underlay is known to have every family."""
        for family in self._families:
            underlay_address(underlay, family)
        return {}

    def local(self, own: Lease, underlay: Underlay) -> Sequence[KernelObject]:
        """Return nothing: the underlay is all there is."""
        del own, underlay
        return ()

    def peer(self, own: Lease, peer: Lease, underlay: Underlay) -> Sequence[KernelObject]:
        """Return the routes to ``peer``. Raises PeerError where a router is between."""
        objects: list[KernelObject] = []
        for family in shared_families(own, peer):
            network = peer.subnet.network(family)
            public = peer.attributes.public.get(family)
            if network is None or public is None:
                msg = f"has {family} pods but no public {family} address"
                raise PeerError(msg)
            if not underlay.is_on_link(public):
                msg = f"public address {public} is not on {underlay.device}'s layer 2"
                raise PeerError(msg)
            metric = peer_metric(self._ranges, network)
            objects.append(direct_route(network, public, underlay, metric))
        return objects

    def node_addresses(self, peer: Lease) -> Sequence[IPAddress]:
        """Return the peer's public addresses."""
        return list(peer.attributes.public.values())
