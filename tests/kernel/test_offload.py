"""Checksum offload of a real VXLAN device, under kernels that spoil checksums and others."""

from functools import partial

import pytest

from overlay.agent.firewall import Firewall
from overlay.kernel.base import KernelError
from overlay.kernel.host.offload import (
    Outcome,
    ensure,
    has_checksum_offload,
    set_checksum_offload,
    spoils_checksums,
)
from tests.kernel.netns import MakeNetns, Netns
from tests.unit.worlds import V4, site

pytestmark = pytest.mark.kernel

DEVICE = "overlay.1"
BAD, GOOD = "5.4.0-216-generic", "5.7.0"


@pytest.fixture
def node(make_netns: MakeNetns) -> Netns:
    node = make_netns()
    node.ip(*f"link add {DEVICE} type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning".split())
    return node


def is_on(node: Netns) -> bool:
    return node.call(lambda: has_checksum_offload(DEVICE))


@pytest.mark.parametrize(
    ("choice", "release", "before", "after"),
    [
        pytest.param("auto", BAD, True, False, id="auto, a kernel that spoils checksums"),
        pytest.param("auto", GOOD, True, True, id="auto, a kernel that does not"),
        pytest.param("auto", GOOD, False, False, id="auto leaves alone what somebody chose"),
        pytest.param("on", BAD, False, True, id="on, whatever the kernel"),
        pytest.param("off", GOOD, True, False, id="off, whatever the kernel"),
    ],
)
def test_offload_follows_the_choice_and_the_kernel(
    node: Netns, choice: str, release: str, before: bool, after: bool
) -> None:
    node.call(lambda: set_checksum_offload(DEVICE, is_on=before))
    assert is_on(node) is before
    found = node.call(partial(ensure, [DEVICE], choice, release))
    way = "off -> on" if after else "on -> off"
    changes = (f"checksum offload of {DEVICE}: {way}",) if before is not after else ()
    assert found == Outcome(changes)
    assert is_on(node) is after
    assert node.call(partial(ensure, [DEVICE], choice, release)) == Outcome()


def test_audit_of_the_agent_keeps_it_off(node: Netns) -> None:
    node.ip("link", "add", "eth0", "type", "bridge")  # the underlay, which must forward
    firewall = Firewall(release=BAD)
    first = node.call(partial(firewall.surroundings, site(V4), "auto"))
    assert f"checksum offload of {DEVICE}: on -> off" in first.repairs
    assert not first.errors
    node.call(lambda: set_checksum_offload(DEVICE, is_on=True))
    again = node.call(partial(firewall.surroundings, site(V4), "auto"))
    assert again.repairs == (f"checksum offload of {DEVICE}: on -> off",)
    assert not is_on(node)


def test_device_that_is_gone_is_a_problem_with_the_command_to_try(node: Netns) -> None:
    found = node.call(partial(ensure, ["gone", DEVICE], "off", GOOD))
    assert found.changes == (f"checksum offload of {DEVICE}: on -> off",)
    assert "gone: its checksum offload cannot be read: No such device" in found.problems[0]
    with pytest.raises(KernelError, match="ethtool -K gone tx off"):
        node.call(lambda: set_checksum_offload("gone", is_on=False))


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("2.6.78", True),
        ("4.18.0-553.el8_10.x86_64", True),
        ("5.6.19", True),
        ("5.7.0-rc5", False),
        ("5.10.0", False),
        ("6.18.44", False),
        ("10.0", False),
    ],
)
def test_kernels_before_5_7_spoil_checksums(release: str, expected: bool) -> None:
    assert spoils_checksums(release) is expected


def test_release_without_a_version_is_a_problem_and_touches_nothing(node: Netns) -> None:
    found = node.call(partial(ensure, [DEVICE], "auto", "unknown"))
    assert "set --vxlan-checksum-offload to on or off" in found.problems[0]
    assert is_on(node)
    assert not node.call(partial(ensure, [DEVICE], "on", "unknown")).problems
