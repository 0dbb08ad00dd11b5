"""The largest packet that reaches an address, behind a router that says so, or is silent."""

from ipaddress import IPv4Network, ip_address

import pytest

from overlay.kernel.host import path_mtu
from overlay.kernel.host.path_mtu import largest_packets
from overlay.model.address import IPAddress
from tests.kernel.netns import MakeNetns, Netns, eventually, veth

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(60)]

FAR = {4: ip_address("198.51.100.2"), 6: ip_address("2001:db8:2::2")}
NOBODY = {4: ip_address("198.51.100.9"), 6: ip_address("2001:db8:2::9")}


class Way:
    """``near``, a router and ``far`` in a row; the second link carries 1400 bytes."""

    def __init__(self, make: MakeNetns) -> None:
        self.near, self.router, self.far = make(), make(), make()
        veth(self.near, "eth0", self.router, "left")
        veth(self.router, "right", self.far, "eth0")
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.router.sysctl(name, 1)
        for netns, device, v4, v6 in (
            (self.near, "eth0", "192.0.2.2/24", "2001:db8:1::2/64"),
            (self.router, "left", "192.0.2.1/24", "2001:db8:1::1/64"),
            (self.router, "right", "198.51.100.1/24", "2001:db8:2::1/64"),
            (self.far, "eth0", "198.51.100.2/24", "2001:db8:2::2/64"),
        ):
            netns.ip("addr", "add", v4, "dev", device)
            netns.ip("addr", "add", v6, "dev", device, "nodad")
        self.router.ip("link", "set", "right", "mtu", "1400")
        self.far.ip("link", "set", "eth0", "mtu", "1400")
        for netns, v4, v6 in (
            (self.near, "192.0.2.1", "2001:db8:1::1"),
            (self.far, "198.51.100.1", "2001:db8:2::1"),
        ):
            netns.ip("route", "add", "default", "via", v4)
            netns.ip("route", "add", "default", "via", v6)

    def ask(self, *addresses: IPAddress, size: int = 1500) -> list[int]:
        found = self.near.call(lambda: largest_packets(addresses, size, wait_s=0.5))
        return [found[address] for address in addresses]


@pytest.fixture
def way(make_netns: MakeNetns) -> Way:
    return Way(make_netns)


def silence(netns: Netns) -> None:
    """Keep a router from telling what does not fit."""
    netns.nft(
        "-f",
        "-",
        stdin="table inet q { chain o { type filter hook output priority 0; "
        "icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }",
    )


@pytest.mark.parametrize("is_silent", [False, True], ids=["router tells", "router is silent"])
@pytest.mark.parametrize("version", [4, 6])
def test_what_passes_is_measured(way: Way, version: int, is_silent: bool) -> None:
    if is_silent:
        silence(way.router)
    eventually(lambda: way.ask(FAR[version], size=1300) == [1300])
    assert way.ask(FAR[version]) == [1400], "fragments would pass: they must not be made"
    assert way.ask(FAR[version], size=1400) == [1400]


def test_many_at_once_and_nobody(way: Way) -> None:
    eventually(lambda: 0 not in way.ask(*FAR.values(), size=1300))
    assert way.ask(FAR[4], NOBODY[4], FAR[6], NOBODY[6]) == [1400, 0, 1400, 0]
    assert way.ask() == []


def test_no_route_is_no_answer(way: Way) -> None:
    way.near.ip("route", "del", "default")
    assert way.ask(FAR[4]) == [0]


def test_a_thousand_peers_and_a_small_buffer(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    # Less than the kernel's default, and a thirtieth of what all the answers take at once.
    monkeypatch.setattr(path_mtu, "_RECEIVE_BYTES", 48 << 10)
    way.far.ip("route", "add", "local", "203.0.112.0/22", "dev", "lo")
    way.router.ip("route", "add", "203.0.112.0/22", "via", "198.51.100.2")
    peers = list(IPv4Network("203.0.112.0/22").hosts())[:1000]
    eventually(lambda: way.ask(FAR[4], size=1300) == [1300])
    assert way.ask(*peers, size=1400) == [1400] * 1000
    assert way.ask(*peers) == [1400] * 1000
