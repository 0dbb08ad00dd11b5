"""What the monitor tells while pods come and go: nothing of their links, of all else as ever."""

import contextlib
import os
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest

from overlay.kernel import pods
from overlay.kernel.monitor import Monitor
from overlay.kernel.notices import UNDERLAY, Change, Notice
from overlay.kernel.pod_namespace import PodNamespace
from overlay.kernel.pods import PodLink, link_mac
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.node import POD_BRIDGE
from tests.kernel.netns import MakeNetns, Netns, eventually

pytestmark = pytest.mark.kernel

POD = "opod0123456789a"


class Listener:
    """A monitor in a node, heard up to a mark."""

    def __init__(self, node: Netns) -> None:
        self._node = node
        self._monitor = node.call(Monitor)
        self._marks = 0

    def heard(self, *work: Callable[[], object]) -> list[Notice]:
        """Return what is told of ``work``, in order."""
        for each in work:
            each()
        self._marks += 1
        mark = f"mark{self._marks}"
        self._node.ip("link", "add", mark, "type", "bridge")
        notices: list[Notice] = []

        def is_marked() -> bool:
            notices.extend(self._monitor.wait(0.1))
            return _sets("device", mark) in notices

        eventually(is_marked, timeout_s=20.0)
        # The link of the mark is told before its device is.
        return notices[: notices.index(_sets("device", mark)) - 1]

    def close(self) -> None:
        self._monitor.close()


def _sets(*key: str) -> Change:
    return Change("set", key)


@pytest.fixture
def node(make_netns: MakeNetns) -> Netns:
    return make_netns()


def _attach(node: Netns, pod: Netns) -> None:
    macs = link_mac(POD, "pod"), link_mac(POD, "host")
    addresses = ip_address("10.1.0.2"), ip_address("fd00::2")
    link = PodLink("eth0", POD, *macs, 1430, addresses)

    def inside() -> None:
        descriptor = os.open(pod.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with RtnlSocket() as rtnl:
                pods.attach(rtnl, PodNamespace(descriptor), link)
        finally:
            os.close(descriptor)

    node.call(inside)


def test_pods_that_come_and_go_are_passed_over(node: Netns, make_netns: MakeNetns) -> None:
    pod = make_netns()
    with contextlib.closing(Listener(node)) as listener:
        for _ in range(3):
            assert listener.heard(lambda: _attach(node, pod)) == []
            # The pod's own packets leave entries on the node's end.
            pod.run("ping", "-c1", "-W1", "169.254.1.1", check=False)
            assert listener.heard(lambda: node.call(lambda: pods.detach(POD))) == []


def test_pods_from_before_are_passed_over(node: Netns, make_netns: MakeNetns) -> None:
    _attach(node, make_netns())
    with contextlib.closing(Listener(node)) as listener:
        assert listener.heard(lambda: node.ip("link", "set", POD, "down")) == []
        assert listener.heard(lambda: node.ip("addr", "add", "10.9.0.1/24", "dev", POD)) == []


def test_link_that_is_a_pods_no_more_is_told(node: Netns) -> None:
    def rename(before: str, after: str) -> Callable[[], object]:
        return lambda: node.ip("link", "set", before, "name", after)

    def give(address: str, name: str) -> Callable[[], object]:
        return lambda: node.ip("addr", "add", address, "dev", name)

    with contextlib.closing(Listener(node)) as listener:
        assert listener.heard(lambda: node.ip("link", "add", POD, "type", "bridge")) == []
        told = listener.heard(rename(POD, "up0"), give("192.0.2.1/24", "up0"))
        assert Change("del", ("link", POD)) in told
        assert {_sets("device", "up0"), UNDERLAY} <= set(told)
        told = listener.heard(rename("up0", POD))
        assert Change("del", ("link", "up0")) in told
        assert listener.heard(give("192.0.2.2/24", POD)) == []


def test_bridge_of_the_pods_is_told(node: Netns) -> None:
    with contextlib.closing(Listener(node)) as listener:
        told = listener.heard(
            lambda: node.ip("link", "add", POD_BRIDGE, "type", "bridge"),
            lambda: node.ip("link", "set", POD_BRIDGE, "up"),
        )
        assert _sets("device", POD_BRIDGE) in told
        told = listener.heard(lambda: node.ip("link", "del", POD_BRIDGE))
        assert Change("del", ("device", POD_BRIDGE)) in told


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("10.2.0.0/24 dev {} proto 79", id="with our mark"),
        pytest.param("10.2.0.0/24 dev {} proto 80", id="a network, as if it were a pod"),
        pytest.param("10.2.0.0/24 dev {} proto static", id="somebody else's"),
        pytest.param("local 10.2.0.0/24 dev {} table local proto 79", id="among local ones"),
    ],
)
def test_route_by_a_pods_link_that_is_no_pods_is_told(
    node: Netns, make_netns: MakeNetns, words: str
) -> None:
    _attach(node, make_netns())
    with contextlib.closing(Listener(node)) as listener:
        told = listener.heard(lambda: node.ip("route", "add", *words.format(POD).split()))
    keys = [notice.key for notice in told if isinstance(notice, Change)]
    assert [key[2] for key in keys if key[0] == "route"] == [ip_network("10.2.0.0/24")]
