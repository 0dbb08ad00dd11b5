"""``--pmtu-clamp``: what the lessee is told of the underlay."""

from ipaddress import ip_address, ip_interface

import pytest

from overlay.agent.flags import parse_flags
from overlay.agent.mesh_clamp import Clamp
from overlay.agent.status import Snapshot
from overlay.kernel.underlay import UnderlayFlags
from overlay.mesh.path_mtu import PathMtu
from overlay.model.address import FAMILIES, Family
from overlay.model.errors import UsageError
from overlay.model.lease import Lease, LeaseAttributes
from overlay.model.network import parse_network_config
from overlay.model.node import NodeIdentity, Underlay
from overlay.model.subnet import parse_subnet
from overlay.plan.planner import Site
from overlay.plan.registry import load_backend

V4 = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
FIXED = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1400}}'
UNDERLAY = Underlay(
    "eth0",
    1500,
    {Family.IPV4: ip_interface("192.0.2.1/24")},
    {Family.IPV4: ip_address("192.0.2.1")},
)


class World:
    def __init__(self, config: str = V4, *, is_on: bool = True) -> None:
        parsed = parse_network_config(config)
        backend = load_backend(parsed, NodeIdentity("n1", "n1"))
        own = Lease(parse_subnet("10.244.1.0/24"), LeaseAttributes("vxlan"))
        self.snapshot = Snapshot(site=Site(parsed, backend, own, UNDERLAY))
        self.clamp = Clamp(lambda _flags, _families: UNDERLAY, is_on=is_on)
        self.woken = 0
        self.clamp.wake = self.wake
        assert self.mtu() == 1500

    def wake(self) -> None:
        self.woken += 1

    def mtu(self) -> int:
        return self.clamp.find_underlay(UnderlayFlags(), [Family.IPV4]).mtu

    def found(self, *results: PathMtu) -> int:
        by_tag = {bytes([number]): result for number, result in enumerate(results)}
        self.clamp.found(by_tag, self.snapshot)
        return self.mtu()


def test_underlay_carries_what_the_worst_path_does_until_that_is_better() -> None:
    world = World()
    assert world.found(PathMtu(1500, 1500), PathMtu(1420, 1400)) == 1400
    assert world.found(PathMtu(1500, 1500), PathMtu(1420, 1400)) == 1400
    assert world.woken == 1
    assert world.clamp.ceiling(world.snapshot) == 1500
    assert world.found(PathMtu(1500, 1500)) == 1500
    assert world.woken == 2


def test_peer_that_does_not_answer_says_nothing() -> None:
    world = World()
    assert world.found(PathMtu(None, None), PathMtu(1400, None)) == 1500
    assert world.found() == 1500
    assert world.woken == 0


def test_narrow_peer_counts_while_it_is_silent_and_as_long_as_its_lease() -> None:
    world = World()
    wide = PathMtu(1500, 1500)
    assert world.found(wide, PathMtu(1400, 1400)) == 1400
    assert world.found(wide, PathMtu(None, None)) == 1400
    assert world.found(wide, PathMtu(1450, None)) == 1400
    assert world.woken == 1
    assert world.found(wide) == 1500
    assert world.found(wide, PathMtu(None, None)) == 1500, "another one's lease, later"


def test_without_the_flag_or_with_an_mtu_in_the_config_nothing_follows() -> None:
    assert World(is_on=False).found(PathMtu(1400, 1400)) == 1500
    assert World(FIXED).found(PathMtu(1400, 1400)) == 1500


def test_no_less_than_what_pods_need_at_all() -> None:
    world = World()
    assert world.found(PathMtu(576, 576)) == 576 + 50
    least = world.clamp.find_underlay(UnderlayFlags(), FAMILIES).mtu
    assert least == 1280 + 70


def test_probes_are_not_more_often_than_every_second() -> None:
    with pytest.raises(UsageError, match=r"--probe-interval 0\.5 s: probe no more often"):
        parse_flags(["--node-name=a", "--probe-interval=500ms"], {})
    assert parse_flags(["--node-name=a", "--pmtu-clamp"], {}).mesh.clamp
    assert parse_flags(["--node-name=a"], {"OVERLAYD_PROBE_PORT": "0"}).mesh.port == 0
