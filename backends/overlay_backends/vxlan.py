"""VXLAN as flannel does it on the wire, one device for each underlay family.

For a peer with subnet S, VTEP MAC M and public address P::

    bridge fdb replace M dev overlay.1 dst P self permanent
    ip neigh replace S-IP lladdr M dev overlay.1 nud permanent
    ip route replace S via S-IP dev overlay.1 onlink
    ip route replace P via S-IP dev overlay.1 onlink table 20310

The last one carries what pods send to nodes (docs/decisions/0003). With
DirectRouting a peer on the same layer 2 gets ``ip route replace S via P``
alone. Where a network has room for many subnets, routes have metrics
(docs/decisions/0012). IPv4 pods travel over IPv4, IPv6 pods over IPv6.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from typing import Any, Final

from overlay.model.address import Family, IPAddress, MacAddress, host_network, parse_mac
from overlay.model.kernel import (
    NODE_TABLE,
    FdbEntry,
    KernelObject,
    LinkAddress,
    Neighbor,
    Route,
    Rule,
    VxlanLink,
)
from overlay.model.lease import Lease
from overlay.model.metric import node_metric, peer_metric
from overlay.model.network import NetworkConfig, boolean, integer, refuse_unknown
from overlay.model.node import NodeIdentity, Underlay, vtep_device, vtep_mac
from overlay.plan.backend import PeerError, Tunnel, UnderlayError
from overlay.plan.direct import direct_route, shared_families, underlay_address

_OPTIONS: Final = frozenset({"VNI", "Port", "MTU", "DirectRouting", "GBP"})
_MAX_VNI: Final = (1 << 24) - 1  # RFC 7348, section 5
_MIN_MTU: Final = {Family.IPV4: 576, Family.IPV6: 1280}  # RFC 791, RFC 8200 section 5


class VxlanBackend:
    """Plans VXLAN devices, and three entries and two routes for each peer."""

    def __init__(self, config: NetworkConfig, node: NodeIdentity) -> None:
        options = config.backend.options
        refuse_unknown(options, _OPTIONS)
        self._families = config.families
        self._ranges = config.ranges
        self._node = node
        self._vni = integer(options, "VNI", 1, _MAX_VNI, 1)
        self._port = integer(options, "Port", 1, 65535, 8472)
        low = max(_MIN_MTU[family] for family in config.families)
        # 0 and absent mean: from the underlay, as in flannel.
        self._mtu = integer(options, "MTU", low, 65535, 0) if options.get("MTU") else 0
        self._direct = boolean(options, "DirectRouting", default=False)
        self._gbp = boolean(options, "GBP", default=False)
        self._devices = {family: vtep_device(self._vni, family) for family in self._families}

    @property
    def tunnel(self) -> Tunnel:
        """Return what the firewall must know of the devices."""
        return Tunnel(self._port, self._vni, self._devices)

    def mtu(self, underlay: Underlay) -> int:
        """Return the device's MTU: the underlay's less the encapsulation, or what is configured.

        Raises UnderlayError where less is left than the family's minimum, or
        than the config asks for.
        """
        room = underlay.mtu - max(f.encapsulation_overhead for f in self._families)
        low = max(_MIN_MTU[family] for family in self._families)
        if room < low:
            msg = (
                f"underlay {underlay.device}: MTU {underlay.mtu} leaves {room} bytes for pods, "
                f"fewer than the {low} that their family needs; raise the interface's MTU"
            )
            raise UnderlayError(msg)
        if self._mtu > room:
            msg = (
                f"underlay {underlay.device}: MTU {underlay.mtu} has no room for Backend.MTU "
                f"{self._mtu}; lower it to {room} or raise the interface's MTU"
            )
            raise UnderlayError(msg)
        return self._mtu or room

    def lease_data(self, underlay: Underlay) -> Mapping[Family, Mapping[str, Any]]:
        """Return VNI and VTEP MAC for each family, in flannel's form."""
        for family in self._families:
            underlay_address(underlay, family)
        return {
            family: {"VNI": self._vni, "VtepMAC": vtep_mac(self._node.id, self._vni, family)}
            for family in self._families
        }

    def local(self, own: Lease, underlay: Underlay) -> Sequence[KernelObject]:
        """Return the devices, their addresses, and the rule for what pods send to nodes."""
        objects: list[KernelObject] = []
        for family in self._families:
            network = own.subnet.network(family)
            if network is None:
                continue
            device = self._devices[family]
            objects += (
                VxlanLink(
                    name=device,
                    vni=self._vni,
                    port=self._port,
                    mac=vtep_mac(self._node.id, self._vni, family),
                    mtu=self.mtu(underlay),
                    local=underlay_address(underlay, family),
                    underlay=underlay.device,
                    gbp=self._gbp,
                ),
                LinkAddress(device, ip_interface(network.network_address)),
                Rule(network, NODE_TABLE),
            )
        return objects

    def peer(self, own: Lease, peer: Lease, underlay: Underlay) -> Sequence[KernelObject]:
        """Return forwarding entry, neighbor and routes to ``peer``, for each family both have.

        Raises PeerError where the lease lacks what VXLAN needs.
        """
        objects: list[KernelObject] = []
        for family in shared_families(own, peer):
            network = peer.subnet.network(family)
            public = peer.attributes.public.get(family)
            if network is None or public is None:
                msg = f"has {family} pods but no public {family} address"
                raise PeerError(msg)
            mac = self._peer_mac(peer, family)
            metric = peer_metric(self._ranges, network)
            if self._direct and underlay.is_on_link(public):
                objects.append(direct_route(network, public, underlay, metric))
                continue
            device = self._devices[family]
            gateway = network.network_address
            objects += (
                FdbEntry(device, mac, public),
                Neighbor(device, gateway, mac),
                Route(network, device, gateway, onlink=True, metric=metric),
                self._node_route(public, device, gateway),
            )
        return objects

    def node_addresses(self, peer: Lease) -> Sequence[IPAddress]:
        """Return the peer's public addresses of the families that carry VXLAN."""
        return [ip for family, ip in peer.attributes.public.items() if family in self._families]

    def _node_route(self, public: IPAddress, device: str, gateway: IPAddress) -> Route:
        host = host_network(public)
        return Route(host, device, gateway, onlink=True, table=NODE_TABLE, metric=node_metric(host))

    def _peer_mac(self, peer: Lease, family: Family) -> MacAddress:
        data = peer.attributes.backend_data.get(family, {})
        vni = data.get("VNI", self._vni)  # flannel before 0.10 wrote the MAC alone
        if vni != self._vni:
            msg = f"uses VNI {vni!r}, the network {self._vni}"
            raise PeerError(msg)
        text = data.get("VtepMAC")
        if not isinstance(text, str):
            msg = f"names no VtepMAC for {family}"
            raise PeerError(msg)
        try:
            return parse_mac(text)
        except ValueError as exc:
            msg = f"VtepMAC: {exc}"
            raise PeerError(msg) from exc
