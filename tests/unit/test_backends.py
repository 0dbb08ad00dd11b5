"""Backends: options that cannot be, leases that cannot be peers, DirectRouting, third parties."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.model.address import FAMILIES, Family
from overlay.model.errors import ConfigError
from overlay.model.lease import Lease
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity, Underlay, vtep_device, vtep_mac
from overlay.plan.backend import UnderlayError
from overlay.plan.planner import desired
from overlay.plan.registry import load_backend
from tests.unit.worlds import DUAL, V4, V6, by_key, lease, site, subnet, underlay

NODE = NodeIdentity("n1", "node1")


def backend(options: str, families: str = DUAL) -> str:
    return families[:-1] + f', "Backend": {options}}}'


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ('{"Type":"vxlan","VNI":0}', "Backend.VNI 0: out of range; use 1 to 16777215"),
        ('{"Type":"vxlan","VNI":16777216}', "Backend.VNI 16777216: out of range"),
        ('{"Type":"vxlan","VNI":"1"}', "Backend.VNI '1': write a whole number"),
        ('{"Type":"vxlan","VNI":true}', "Backend.VNI True: write a whole number"),
        ('{"Type":"vxlan","Port":65536}', "Backend.Port 65536: out of range; use 1 to 65535"),
        ('{"Type":"vxlan","Port":0}', "Backend.Port 0: out of range"),
        ('{"Type":"vxlan","MTU":1000}', "Backend.MTU 1000: out of range; use 1280"),
        ('{"Type":"vxlan","DirectRouting":"yes"}', "Backend.DirectRouting 'yes': write true"),
        ('{"Type":"vxlan","Learning":true}', "Backend.Learning True: unknown key; known are"),
        ('{"Type":"host-gw","VNI":1}', "Backend.VNI 1: unknown key"),
        ('{"Type":"udp"}', "Backend.Type 'udp': no such backend; installed are host-gw, vxlan"),
    ],
)
def test_option_that_cannot_be_is_named(options: str, text: str) -> None:
    config = parse_network_config(backend(options))
    with pytest.raises(ConfigError) as caught:
        load_backend(config, NODE)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("config", "underlay_mtu", "mtu"),
    [(V4, 1500, 1450), (V6, 1500, 1430), (DUAL, 9000, 8930)],
)
def test_mtu_leaves_room_for_the_largest_encapsulation(
    config: str, underlay_mtu: int, mtu: int
) -> None:
    here = site(config)
    assert here.backend.mtu(Underlay("eth0", underlay_mtu)) == mtu


@pytest.mark.parametrize(
    ("options", "underlay_mtu", "text"),
    [
        ('{"Type":"vxlan"}', 1300, "MTU 1300 leaves 1230 bytes for pods, fewer than the 1280"),
        ('{"Type":"vxlan","MTU":1450}', 1500, "no room for Backend.MTU 1450; lower it to 1430"),
    ],
)
def test_underlay_without_room(options: str, underlay_mtu: int, text: str) -> None:
    here = site(backend(options))
    with pytest.raises(UnderlayError) as caught:
        here.backend.mtu(Underlay("eth0", underlay_mtu))
    assert text in str(caught.value)


def test_underlay_without_a_family_of_the_network() -> None:
    where = underlay(1)
    v4_only = Underlay("eth0", 1500, {Family.IPV4: where.local[Family.IPV4]})
    with pytest.raises(UnderlayError, match="eth0 has no IPv6 address"):
        site(DUAL).backend.lease_data(v4_only)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (lease(2, backend="wireguard"), "speaks wireguard, the network vxlan"),
        (lease(2, vni=9), "uses VNI 9, the network 1"),
        (lease(2, public=1), "claims this node's own public address 192.0.2.1"),
        (lease(2, at=subnet(0x10000)), "lies outside the pod network"),
        (lease(9, at=subnet(1, [Family.IPV4])), "overlaps this node's subnet"),
        (lease(9, at=subnet(3)), "shares addresses with lease 10.244.3.0-24"),
        (lease(9, macs="n3"), "shares addresses with lease 10.244.3.0-24"),
    ],
)
def test_lease_that_cannot_be_a_peer_is_named_and_harms_nobody(bad: Lease, text: str) -> None:
    here = site(DUAL)
    good = lease(3)
    leases = by_key(good)
    if bad.subnet.key in leases:  # two keys for one subnet: the other one lacks a family
        bad = lease(9, at=subnet(3, [Family.IPV4]), families=[Family.IPV4])
    plan = desired(here, {**leases, **by_key(bad)})
    assert text in plan.problems[bad.subnet.key].text
    assert plan.objects == desired(here, leases).objects


def test_vacant_reservation_is_no_peer_and_no_problem() -> None:
    plan = desired(site(DUAL), by_key(lease(2, backend="reservation")))
    assert (plan.peers, dict(plan.problems)) == ({}, {})


def test_older_claim_wins_whatever_the_order() -> None:
    here = site(DUAL)
    old, young = lease(4, revision=5), lease(5, macs="n4", revision=6)
    for pair in ((old, young), (young, old)):
        plan = desired(here, by_key(*pair))
        assert list(plan.peers) == [old.subnet.key]
        assert "which was there first" in plan.problems[young.subnet.key].text


def test_direct_routing_only_where_no_router_is_between() -> None:
    here = site(backend('{"Type":"vxlan","DirectRouting":true}', V4))
    near, far = lease(2, families=[Family.IPV4]), lease(3, families=[Family.IPV4], public=77)
    plan = desired(here, by_key(near, far))
    assert "route 10.244.2.0/24 via 192.0.2.2 dev eth0 proto 79" in map(str, plan.objects.values())
    narrow = Underlay(
        "eth0",
        1500,
        {Family.IPV4: type(here.underlay.local[Family.IPV4])("192.0.2.1/30")},
        here.underlay.public,
    )
    kinds = [str(o) for o in here.backend.peer(here.own, far, narrow)]
    assert kinds[0].startswith("fdb ")


def test_host_gw_leaves_out_what_is_behind_a_router() -> None:
    here = site(backend('{"Type":"host-gw"}', V4))
    far = lease(
        300, families=[Family.IPV4], backend="host-gw", public=2, at=subnet(9, [FAMILIES[0]])
    )
    plan = desired(here, by_key(far))
    assert list(plan.peers) == [far.subnet.key]
    alone = Underlay("eth0", 1500, {}, here.underlay.public)
    outside = desired(type(here)(here.config, here.backend, here.own, alone), by_key(far))
    assert "is not on eth0's layer 2" in outside.problems[far.subnet.key].text


@given(st.text(), st.integers(1, (1 << 24) - 1), st.sampled_from(FAMILIES))
def test_vtep_mac_is_one_stations_own_and_its_device_has_a_name_that_fits(
    node: str, vni: int, family: Family
) -> None:
    mac = vtep_mac(node, vni, family)
    assert int(mac[:2], 16) & 0b11 == 0b10, "locally administered, unicast"
    assert mac == vtep_mac(node, vni, family)
    names = {vtep_device(vni, f) for f in FAMILIES}
    assert len(names) == 2
    assert all(len(name) <= 15 for name in names)


def test_third_party_adds_a_backend_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_backend.py").write_text(
        "from overlay_backends.host_gw import HostGatewayBackend\n"
        "class AcmeBackend(HostGatewayBackend):\n"
        "    pass\n"
    )
    info = tmp_path / "acme_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[console_scripts]\nacme = acme:main\n[overlay.backends]\n"
        "acme=acme_backend:AcmeBackend [v6]\n"
    )
    odd = tmp_path / "aaa_odd-1.0.dist-info"  # looked at first
    odd.mkdir()
    (odd / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa-odd\nVersion: 1.0\n")
    (odd / "entry_points.txt").write_bytes(b"[overlay.backends]\nacme = \xff\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    made = load_backend(parse_network_config(backend('{"Type":"acme"}')), NODE)
    assert type(made).__name__ == "AcmeBackend"
