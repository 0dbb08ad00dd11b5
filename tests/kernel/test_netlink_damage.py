"""Real dumps and notifications of this kernel, damaged: read, or refused as a whole."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.kernel import link_requests, links, messages, parse
from overlay.kernel.monitor import Monitor
from overlay.kernel.netlink import NetlinkKernel
from overlay.kernel.notices import OVERFLOW, SYSCTL, UNDERLAY, Change
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.wire import MessageError, split
from overlay.model.address import FAMILIES
from overlay.model.kernel import KernelObject, Op
from overlay.plan.diff import diff
from overlay.plan.planner import desired
from tests.kernel.netns import MakeNetns, Netns
from tests.unit import odd
from tests.unit.worlds import by_key, lease, site

pytestmark = pytest.mark.kernel

WORDS = {OVERFLOW, UNDERLAY, SYSCTL}


def busy_node(make: MakeNetns) -> Netns:
    """Return a node that the fabric was set up on, with an underlay of both families."""
    netns = make()
    netns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    netns.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    netns.ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    netns.ip("link", "set", "far0", "up")
    netns.ip("link", "set", "eth0", "up")
    return netns


def set_up() -> None:
    kernel = NetlinkKernel()
    wanted = desired(site(), by_key(*(lease(i) for i in range(2, 6)))).objects.values()
    for _ in range(3):
        assert kernel.apply(diff(wanted, kernel.dump())) == ()
    kernel.close()


@pytest.fixture(scope="module")
def node(make_module_netns: MakeNetns) -> Netns:
    return busy_node(make_module_netns)


@pytest.fixture(scope="module")
def told(node: Netns) -> list[bytes]:
    """Return every datagram that the kernel told while the fabric was set up and a link renamed."""

    def listen() -> list[bytes]:
        with ExitStack() as stack:
            monitor = Monitor()
            stack.callback(monitor.close)
            set_up()
            node.ip("link", "set", "far0", "down")
            node.ip("link", "set", "far0", "name", "other0")
            node.sysctl("net/ipv4/ip_forward", 1)
            node.ip("link", "add", "opod0", "type", "veth", "peer", "name", "pod0")
            node.ip("addr", "add", "169.254.1.1/32", "dev", "opod0")
            node.ip("link", "del", "opod0")
            datagrams = []
            while True:
                try:
                    datagrams.append(monitor._route.recv(1 << 20))
                except BlockingIOError:
                    return datagrams

    return node.call(listen)


@pytest.fixture(scope="module")
def dumps(node: Netns, told: list[bytes]) -> list[bytes]:
    """Return the body of every message in dumps of all kinds, after the set-up."""
    del told  # set up by then
    requests = [(link_requests.RTM_GETLINK, bytes(16)), (messages.RTM_GETADDR, bytes(8))]
    for family in FAMILIES:
        requests.append((messages.RTM_GETROUTE, messages.routes_request(family)))
        requests.append((messages.RTM_GETRULE, messages.rules_request(family)))
        requests.append((messages.RTM_GETNEIGH, bytes([messages.AF[family]]) + bytes(11)))
    requests.append((messages.RTM_GETNEIGH, messages.fdb_request(0)))

    def collect() -> list[bytes]:
        with RtnlSocket() as rtnl:
            return [
                data[start:end]
                for kind, body in requests
                for data, start, end in rtnl.dump(kind, body)
            ]

    return node.call(collect)


def objects(body: bytes) -> list[KernelObject]:
    """Return all that any reader makes of a message. Nothing but MessageError may leave one."""
    whole = (body, 0, len(body))
    places: tuple[Callable[[], object], ...] = (
        lambda: parse.route_place(*whole),
        lambda: parse.route_way(*whole),
        lambda: parse.route_maker(whole),
        lambda: parse.neighbor_address(*whole),
        lambda: links.parse_link(*whole),
    )
    for place in places:
        odd.outcome(MessageError, place)
    lists: tuple[Callable[[], Sequence[KernelObject]], ...] = (
        lambda: parse.routes([whole], {}),
        lambda: parse.neighbors([whole], "x", int.from_bytes(body[4:8], "little")),
        lambda: parse.fdb([whole], "x", int.from_bytes(body[4:8], "little")),
        lambda: parse.addresses([whole], "x", int.from_bytes(body[4:8], "little")),
        lambda: parse.rules([whole]),
    )
    found: list[KernelObject] = []
    for read in lists:
        items = odd.outcome(MessageError, read)
        found += () if isinstance(items, MessageError) else items
    return found


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_dump_is_read_or_refused(dumps: list[bytes], data: st.DataObject) -> None:
    assert len(dumps) > 30
    for item in objects(data.draw(odd.damaged(data.draw(st.sampled_from(dumps))))):
        # Whatever was read, the kernel could be asked for.
        index = {getattr(item, "device", ""): 3}
        assert messages.request(Op("set", item), index).body
        assert str(item)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_notification_is_told_as_what_may_have_been_missed(
    node: Netns, told: list[bytes], data: st.DataObject
) -> None:
    datagram = data.draw(odd.damaged(data.draw(st.sampled_from(told))) | st.binary(max_size=200))
    monitor = node.call(Monitor)
    try:
        notices = list(monitor._parse(datagram))
    finally:
        monitor.close()
    for notice in notices:
        if isinstance(notice, str):
            assert notice in WORDS
            continue
        assert isinstance(notice, Change)
        item = notice.item
        assert notice.verb in {"set", "del"}
        assert item is None or (isinstance(item, KernelObject) and item.key == notice.key)
    is_whole = not isinstance(
        odd.outcome(MessageError, lambda: list(split(datagram))), MessageError
    )
    assert is_whole or OVERFLOW in notices


def test_undamaged_notifications_are_all_read(node: Netns, told: list[bytes]) -> None:
    monitor = node.call(Monitor)
    notices = [notice for datagram in told for notice in monitor._parse(datagram)]
    monitor.close()
    assert OVERFLOW not in notices
    keys = {notice.key[0] for notice in notices if isinstance(notice, Change)}
    assert keys == {"link", "device", "addr", "neigh", "fdb", "route", "rule", "forwarding"}
    assert {UNDERLAY, SYSCTL} <= {notice for notice in notices if isinstance(notice, str)}
