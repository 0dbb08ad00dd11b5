"""Plain routes to peers on the same layer 2, and what backends share of the underlay."""

from overlay.model.address import FAMILIES, Family, IPAddress, IPNetwork
from overlay.model.kernel import Route
from overlay.model.lease import Lease
from overlay.model.node import Underlay
from overlay.plan.backend import UnderlayError


def direct_route(network: IPNetwork, public: IPAddress, underlay: Underlay, metric: int) -> Route:
    """Return ``ip route replace NETWORK via PUBLIC dev UNDERLAY metric METRIC``."""
    return Route(network, underlay.device, public, metric=metric)


def shared_families(own: Lease, peer: Lease) -> tuple[Family, ...]:
    """Return the families in which both nodes have pods, IPv4 first."""
    return tuple(
        family
        for family in FAMILIES
        if own.subnet.network(family) is not None and peer.subnet.network(family) is not None
    )


def underlay_address(underlay: Underlay, family: Family) -> IPAddress:
    """Return the node's own address on the underlay.

    Raises UnderlayError where it has none of that family.
    """
    interface = underlay.local.get(family)
    if interface is None:
        msg = (
            f"underlay {underlay.device} has no {family} address, and the network has {family} "
            f"pods; give it one, choose another interface with --iface, or disable {family} "
            "in the network config"
        )
        raise UnderlayError(msg)
    return interface.ip
