"""Leases, nodes and networks for tests: number ``i`` determines everything about a node."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface
from typing import Any

from overlay.model.address import FAMILIES, Family
from overlay.model.lease import Lease, LeaseAttributes, Owner
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.node import NodeIdentity, Underlay, vtep_mac
from overlay.model.subnet import Subnet
from overlay.plan.planner import Site
from overlay.plan.registry import load_backend

DUAL = '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}'
V4 = '{"Network":"10.244.0.0/16"}'
V6 = '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/48"}'


def subnet(i: int, families: Sequence[Family] = FAMILIES) -> Subnet:
    return Subnet(
        IPv4Network(((10 << 24) + (244 << 16) + (i << 8), 24)) if Family.IPV4 in families else None,
        IPv6Network((int(IPv6Address("fd00:1::")) + (i << 64), 64))
        if Family.IPV6 in families
        else None,
    )


def underlay(i: int) -> Underlay:
    v4, v6 = f"192.0.2.{i}", f"2001:db8::{i:x}"
    return Underlay(
        "eth0",
        1500,
        {Family.IPV4: ip_interface(f"{v4}/24"), Family.IPV6: ip_interface(f"{v6}/64")},
        {Family.IPV4: IPv4Address(v4), Family.IPV6: IPv6Address(v6)},
    )


def lease(
    i: int,
    *,
    families: Sequence[Family] = FAMILIES,
    public: int | None = None,
    macs: str | None = None,
    vni: int = 1,
    backend: str = "vxlan",
    revision: int | None = None,
    at: Subnet | None = None,
) -> Lease:
    where = underlay(i if public is None else public)
    data: Mapping[Family, Mapping[str, Any]] = {
        f: {"VNI": vni, "VtepMAC": vtep_mac(macs or f"n{i}", vni, f)} for f in families
    }
    return Lease(
        at or subnet(i, families),
        LeaseAttributes(
            backend,
            {f: where.public[f] for f in families},
            data if backend == "vxlan" else {},
            Owner(f"n{i}", f"node{i}"),
        ),
        create_revision=i if revision is None else revision,
        mod_revision=i if revision is None else revision,
        lease_id=1,
    )


def site(config: NetworkConfig | str = DUAL, i: int = 1) -> Site:
    parsed = parse_network_config(config) if isinstance(config, str) else config
    node = NodeIdentity(f"n{i}", f"node{i}")
    own = lease(i, families=parsed.families, backend=parsed.backend.type)
    return Site(parsed, load_backend(parsed, node), own, underlay(i))


def by_key(*leases: Lease) -> dict[str, Lease]:
    return {each.subnet.key: each for each in leases}
