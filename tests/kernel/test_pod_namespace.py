"""What the plugin hands over of a pod's namespace: used without entering, refused if odd."""

import contextlib
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlay.kernel.base import KernelError
from overlay.kernel.links import list_links
from overlay.kernel.pod_namespace import PodNamespace, open_pod_rtnl
from tests.kernel.netns import MakeNetns, Netns
from tests.kernel.rights import NET_ADMIN, NET_RAW, handed_over, keep_capabilities

pytestmark = pytest.mark.kernel

_NETLINK_NETFILTER = 12  # linux/netlink.h
SYSCTLS = {"eth0/disable_ipv6": "0", "eth0/accept_ra": "0"}


@pytest.fixture
def pod(make_netns: MakeNetns) -> Netns:
    made = make_netns()
    made.ip("link", "add", "eth0", "type", "bridge")
    made.sysctl("net/ipv6/conf/eth0/disable_ipv6", 1)
    return made


def confined(node: Netns, function: Callable[[], object]) -> None:
    """Run ``function`` in the node, with the rights of a container."""

    def inside() -> None:
        keep_capabilities(NET_ADMIN, NET_RAW)
        function()

    node.call(inside)


def links_of(given: PodNamespace) -> set[str]:
    with open_pod_rtnl(given, SYSCTLS) as inside:
        return set(list_links(inside))


def test_socket_and_sysctls_are_the_pods_own(make_netns: MakeNetns, pod: Netns) -> None:
    node = make_netns()
    node.ip("link", "add", "eth0", "type", "bridge")
    kept = node.sysctl("net/ipv6/conf/eth0/accept_ra")
    node.sysctl("net/ipv6/conf/eth0/disable_ipv6", 1)
    pod.ip("link", "add", "of-the-pod", "type", "bridge")

    def work() -> None:
        with handed_over_before as given:
            assert links_of(given) >= {"lo", "eth0", "of-the-pod"}

    handed_over_before = _Opened(pod)
    confined(node, work)
    for name, value in SYSCTLS.items():
        assert pod.sysctl(f"net/ipv6/conf/{name}") == value
    assert node.sysctl("net/ipv6/conf/eth0/disable_ipv6") == "1"
    assert node.sysctl("net/ipv6/conf/eth0/accept_ra") == kept


class _Opened(contextlib.ExitStack):
    """What the plugin opened, made by a thread that may enter and used by one that may not."""

    def __init__(self, pod: Netns) -> None:
        super().__init__()
        self._given = super().enter_context(handed_over(pod))

    def __enter__(self) -> PodNamespace:  # type: ignore[override]  # what was opened, not itself
        return self._given


def test_namespace_alone_needs_the_right_to_enter(make_netns: MakeNetns, pod: Netns) -> None:
    def work() -> None:
        with handed_over(pod, is_whole=False) as given:
            keep_capabilities(NET_ADMIN, NET_RAW)
            with pytest.raises(KernelError, match=r"setns: Operation not permitted.*install"):
                links_of(given)

    make_netns().call(work)


@contextlib.contextmanager
def read_only_sysctls(pod: Netns) -> Iterator[int]:
    """Open the pod's sysctls where it is read-only, as a plugin in a container would."""
    with tempfile.TemporaryDirectory() as folder:
        sleep = f"exec sleep infinity < {folder}/net/ipv6/conf"
        mount = f"mount --bind -o ro /proc/sys {folder} && {sleep}"
        command = ["nsenter", f"--net={pod.path}", "unshare", "--mount", "sh", "-c"]
        with subprocess.Popen([*command, mount]) as process:
            try:
                path = Path(f"/proc/{process.pid}/fd/0")
                while "sleep" not in Path(f"/proc/{process.pid}/comm").read_text():
                    assert process.poll() is None
                yield os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            finally:
                process.kill()


def test_sysctl_that_cannot_be_set_is_an_error_and_one_that_is_right_is_none(
    make_netns: MakeNetns, pod: Netns
) -> None:
    expected = (
        "sysctl net/ipv6/conf/eth0/disable_ipv6 = 0 of the pod: Read-only file system; "
        "the runtime must execute the plugin as root with a writable /proc/sys"
    )
    node = make_netns()
    with handed_over(pod) as given, read_only_sysctls(pod) as directory:
        odd = PodNamespace(given.descriptor, given.rtnl, directory)

        def refused() -> None:
            with pytest.raises(KernelError, match=re.escape(expected)):
                links_of(odd)

        confined(node, refused)
        for name, value in SYSCTLS.items():
            pod.sysctl(f"net/ipv6/conf/{name}", value)
        confined(node, lambda: links_of(odd))
        os.close(directory)


def test_what_is_no_rtnetlink_socket_of_the_namespace_is_refused(
    make_netns: MakeNetns, pod: Netns
) -> None:
    node, other = make_netns(), make_netns()
    with (
        handed_over(pod) as given,
        handed_over(other) as strange,
        socket.socket(socket.AF_UNIX) as unix,
        pod.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netfilter,
        pod.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as bound,
        open("/dev/null") as null,  # noqa: PTH123 - a descriptor
    ):
        bound.bind((4711, 0))
        cases = {
            strange.rtnl: "of another namespace",
            unix.fileno(): "none of rtnetlink",
            netfilter.fileno(): "none of rtnetlink",
            null.fileno(): "no socket",
            given.descriptor: "no socket",
            bound.fileno(): "no rtnetlink socket: Invalid argument",
        }

        def look() -> None:
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as many both times
            for descriptor, reason in cases.items():
                odd = PodNamespace(given.descriptor, descriptor, given.sysctls)
                with pytest.raises(KernelError, match=reason):
                    open_pod_rtnl(odd)
            assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - likewise

        confined(node, look)


def test_handed_over_socket_waits_for_its_answers(make_netns: MakeNetns, pod: Netns) -> None:
    """Its maker may have left it non-blocking, which is the same for all its descriptors."""
    node = make_netns()
    with handed_over(pod) as given:
        assert given.rtnl is not None
        os.set_blocking(given.rtnl, False)
        confined(node, lambda: links_of(given))
