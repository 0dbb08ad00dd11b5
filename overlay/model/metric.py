"""The metrics of routes to peers, which spread them over the kernel's hash of next hops.

IPv4 keeps next hops in a hash of protocol, device and metric, not of gateway:
routes that differ in their gateway alone share one bucket, and making N of
them costs N * N / 2 comparisons (docs/decisions/0012). IPv6 has no such hash.
"""

from collections.abc import Mapping
from typing import Final

from overlay.model.address import Family, IPNetwork
from overlay.model.network import SubnetRange

# Subnets of a network whose routes keep metric 0: 4,096 in one bucket take 0.1 s.
ONE_BUCKET: Final = 4096
_BUCKETS: Final = 1024


def spread_metric(prefix: IPNetwork) -> int:
    """Return the metric of an IPv4 prefix where routes are spread, 1 to 1,024.

    Prefixes side by side have different ones. It follows from the prefix alone,
    so that it stays when the network is widened.

    >>> from ipaddress import ip_network
    >>> spread_metric(ip_network("10.0.3.0/24")), spread_metric(ip_network("10.0.4.0/24"))
    (4, 5)
    """
    bits = prefix.max_prefixlen - prefix.prefixlen
    return 1 + (int(prefix.network_address) >> bits) % _BUCKETS


def peer_metric(ranges: Mapping[Family, SubnetRange], prefix: IPNetwork) -> int:
    """Return the metric of the route to a peer's subnet in a network of these ``ranges``.

    0 where the whole network has room for few subnets, and for IPv6.
    """
    span = ranges.get(Family.IPV4)
    if prefix.version != Family.IPV4.value or span is None:
        return 0
    room = 1 << (span.prefixlen - span.network.prefixlen)
    return spread_metric(prefix) if room > ONE_BUCKET else 0


def node_metric(prefix: IPNetwork) -> int:
    """Return the metric of the route to a peer's own address in the table for nodes.

    That table is ours alone, so it says nothing there.
    """
    return int(prefix.network_address) if prefix.version == Family.IPV4.value else 0
