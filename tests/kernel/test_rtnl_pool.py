"""Sockets that are lent: used again, by one at a time, and not after a failure."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from overlay.kernel import pods
from overlay.kernel.base import KernelError
from overlay.kernel.links import list_links
from overlay.kernel.netns import enter_new, namespace_of, own_namespace
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.rtnl_pool import RtnlPool
from overlay.model.address import IPAddress
from tests.kernel.netns import Netns

pytestmark = pytest.mark.kernel


def test_socket_is_lent_again_but_not_to_two(netns: Netns) -> None:
    def work() -> None:
        pool = RtnlPool()
        with pool.lent() as first, pool.lent() as second:
            assert first.port != second.port
            assert list_links(first).keys() == list_links(second).keys() == {"lo"}
        ports = {first.port, second.port}
        for _ in range(5):
            with pool.lent() as again:
                assert again.port in ports
                assert list_links(again).keys() == {"lo"}

    netns.call(work)


def test_socket_is_not_lent_after_a_failure(netns: Netns) -> None:
    def work() -> None:
        pool = RtnlPool()
        with pytest.raises(KernelError), pool.lent() as failed:
            raise KernelError
        with pool.lent() as next_one:
            assert next_one is not failed
            assert list_links(next_one).keys() == {"lo"}

    netns.call(work)


def test_socket_knows_its_namespace(netns: Netns) -> None:
    def work() -> RtnlSocket:
        made = RtnlSocket()
        assert namespace_of(made.namespace()) == own_namespace()
        return made

    with netns.call(work) as socket:
        assert namespace_of(socket.namespace()) != own_namespace(), "also when asked from outside"


def test_namespace_without_any_route_has_none() -> None:
    """The kernel has no table of IPv4 routes before the first route, and says so by an error."""

    def look() -> dict[str, list[IPAddress]]:
        enter_new()  # where lo never was up
        with RtnlSocket() as rtnl:
            return pods.addresses_in_use(rtnl)

    with ThreadPoolExecutor(
        1
    ) as pool:  # its thread ends in that namespace, and the namespace with it
        assert pool.submit(look).result() == {}
