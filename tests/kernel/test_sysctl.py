"""What forwarding needs, in a namespace of its own."""

import json
import logging
import os
import socket
import struct
from functools import partial
from ipaddress import ip_interface
from pathlib import Path

import pytest

from overlay.kernel import sysctl
from overlay.kernel.monitor import Monitor
from overlay.kernel.notices import SYSCTL, Notice, is_news
from overlay.kernel.notices import Change as Told
from overlay.kernel.sysctl import Change, Sysctl, ensure, ipv6_links, wanted
from overlay.model.address import Family
from overlay.model.network import NetworkConfig, parse_network_config
from overlay.model.node import Underlay
from tests.kernel.netns import MakeNetns, Netns, eventually, veth

pytestmark = pytest.mark.kernel

UNDERLAY = Underlay("up.100", 1500, {Family.IPV4: ip_interface("192.0.2.1/24")})


def config(*, v6: bool) -> NetworkConfig:
    document = {"Network": "10.244.0.0/16", "EnableIPv6": v6, "IPv6Network": "fd00:1::/56"}
    return parse_network_config(json.dumps(document))


@pytest.fixture
def router(make_netns: MakeNetns) -> Netns:
    return make_netns()


@pytest.fixture
def node(make_netns: MakeNetns, router: Netns) -> Netns:
    """Return a namespace with an underlay whose name has a dot, another link, and a tunnel."""
    node = make_netns()
    veth(node, "up.100", router, "x0")
    veth(node, "second", router, "x1")
    veth(node, "overlay.1", router, "x2")
    veth(node, "opod1", router, "x3")
    return node


def test_wanted_reads_like_sysctl() -> None:
    assert [str(s) for s in wanted(config(v6=False), UNDERLAY, ["overlay.1"])] == [
        "net/ipv4/ip_forward = 1",
        "net/ipv4/conf/up.100/forwarding = 1",
        "net/ipv4/conf/overlay.1/forwarding = 1",
    ]
    assert [
        str(s) for s in wanted(config(v6=True), UNDERLAY, ["overlay.1"], ["eth1", "up.100"])
    ] == [
        "net/ipv4/ip_forward = 1",
        "net/ipv4/conf/up.100/forwarding = 1",
        "net/ipv4/conf/overlay.1/forwarding = 1",
        "net/ipv6/conf/up.100/accept_ra = 2",
        "net/ipv6/conf/eth1/accept_ra = 2",
        "net/ipv6/conf/all/forwarding = 1",
        "net/ipv6/conf/up.100/forwarding = 1",
        "net/ipv6/conf/overlay.1/forwarding = 1",
        "net/ipv6/conf/overlay.1/disable_ipv6 = 0",
        "net/ipv6/conf/overlay.1/accept_ra = 0",
    ]


def test_values_that_differ_are_found_where_the_kernel_tells_nothing(
    node: Netns, router: Netns
) -> None:
    del router
    settings = wanted(config(v6=True), UNDERLAY, [])
    node.call(lambda: ensure(settings))
    assert node.call(lambda: sysctl.differing(settings)) == frozenset()
    name = "net/ipv4/conf/up.100/forwarding"
    node.call(lambda: (sysctl._ROOT / name).write_text("0"))
    assert node.call(lambda: sysctl.differing(settings)) == {name}


def test_every_value_that_counts_as_told_is_told(node: Netns, router: Netns) -> None:
    del router
    settings = wanted(config(v6=True), UNDERLAY, ["overlay.1"])
    node.call(lambda: ensure(settings))
    told = [setting.name for setting in settings if setting.is_told and not setting.when]
    assert len(told) == 6
    for name in told:
        monitor = node.call(Monitor)
        node.sysctl("net/ipv4/conf/opod1/forwarding", 0)  # a pod's own is not
        node.sysctl("net/ipv6/conf/opod1/forwarding", 0)
        node.sysctl(name, 0)
        underlays = Told("del", ("forwarding", "up.100"))
        found: list[Notice] = []
        while (underlays if "up.100" in name else SYSCTL) not in found:
            told_now = node.call(partial(monitor.wait, 5.0))
            assert told_now, f"{name} is told"
            found += told_now
        monitor.close()
        assert not any("opod1" in str(notice) for notice in found)
        assert is_news(underlays, {}, "up.100")
        assert not is_news(underlays, {}, "second")
        node.call(lambda: ensure(settings))


def advertise(router: Netns, device: str) -> None:
    """Send a router advertisement with a lifetime of half an hour (RFC 4861, section 4.2)."""
    with router.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        index = router.ip_json("link", "show", device)[0]["ifindex"]
        message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
        sender.sendto(message, ("ff02::1", 0, 0, index))


def learnt(node: Netns, device: str) -> bool:
    return "default" in node.ip("-6", "route", "show", "dev", device, "proto", "ra")


def test_advertised_default_route_survives_forwarding(
    node: Netns, router: Netns, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for device in ("up.100", "second"):
        node.sysctl(f"net/ipv6/conf/{device}/accept_ra", 1)
    node.sysctl("net/ipv6/conf/overlay.1/disable_ipv6", 1)
    for device, far in (("up.100", "x0"), ("second", "x1")):
        advertise(router, far)
        eventually(partial(learnt, node, device), what=f"a route by {device}")
    links = node.call(ipv6_links)
    assert links == ("overlay.1", "second", "up.100")
    settings = wanted(config(v6=True), UNDERLAY, ["overlay.1"], links)
    outcome = node.call(lambda: ensure(settings))
    assert [str(c) for c in outcome.changes] == [
        "sysctl net/ipv4/ip_forward: 0 -> 1",
        "sysctl net/ipv6/conf/up.100/accept_ra: 1 -> 2",
        "sysctl net/ipv6/conf/second/accept_ra: 1 -> 2",
        "sysctl net/ipv6/conf/all/forwarding: 0 -> 1",
        "sysctl net/ipv6/conf/overlay.1/disable_ipv6: 1 -> 0",
        "sysctl net/ipv6/conf/overlay.1/accept_ra: 1 -> 0",
    ]
    assert outcome.problems == ()
    assert [record.message for record in caplog.records] == [str(c) for c in outcome.changes]
    assert learnt(node, "up.100")
    assert learnt(node, "second")
    again = node.call(lambda: ensure(settings))
    assert (again.changes, again.problems) == ((), ())


def test_host_that_forwarded_before_keeps_its_accept_ra(node: Netns) -> None:
    node.sysctl("net/ipv6/conf/all/forwarding", 1)
    settings = wanted(config(v6=True), UNDERLAY, [])
    outcome = node.call(lambda: ensure(settings))
    assert outcome.changes == (Change("net/ipv4/ip_forward", "0", "1"),)
    assert node.sysctl("net/ipv6/conf/up.100/accept_ra") == "1"


def test_device_that_is_gone_is_a_problem_and_the_rest_is_set(netns: Netns) -> None:
    outcome = netns.call(lambda: ensure(wanted(config(v6=True), UNDERLAY, ["overlay.1"])))
    assert netns.sysctl("net/ipv6/conf/all/forwarding") == "1"
    assert [str(c.name) for c in outcome.changes] == [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
    ]
    assert [p.split(":")[0] for p in outcome.problems] == [
        "sysctl net/ipv4/conf/up.100/forwarding = 1",
        "sysctl net/ipv4/conf/overlay.1/forwarding = 1",
        "sysctl net/ipv6/conf/up.100/accept_ra = 2",
        "sysctl net/ipv6/conf/up.100/forwarding = 1",
        "sysctl net/ipv6/conf/overlay.1/forwarding = 1",
        "sysctl net/ipv6/conf/overlay.1/disable_ipv6 = 0",
        "sysctl net/ipv6/conf/overlay.1/accept_ra = 0",
    ]


def test_value_that_cannot_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tmp_path / "net/ipv4/ip_forward"
    name.parent.mkdir(parents=True)
    name.write_text("0\n")
    monkeypatch.setattr(sysctl, "_ROOT", tmp_path)

    def refuse(*_: object) -> int:
        raise PermissionError(30, os.strerror(30))

    monkeypatch.setattr(Path, "write_text", refuse)
    (problem,) = ensure([Sysctl("net/ipv4/ip_forward", "1")]).problems
    assert problem == (
        "sysctl net/ipv4/ip_forward = 1: is not ours to write (Read-only file system); "
        "run `sysctl -w net/ipv4/ip_forward=1` on the host"
    )


def test_forwarding_alone_would_lose_the_advertised_route(node: Netns, router: Netns) -> None:
    """What the order of ``wanted`` is for."""
    advertise(router, "x0")
    eventually(partial(learnt, node, "up.100"), what="a route by up.100")
    node.call(lambda: ensure([Sysctl("net/ipv6/conf/all/forwarding", "1")]))
    assert not learnt(node, "up.100")
