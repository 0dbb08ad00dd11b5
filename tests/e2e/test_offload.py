"""The real agent on what it takes for a kernel that spoils checksums: ``setarch --uname-2.6``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay.kernel.host.offload import has_checksum_offload, set_checksum_offload
from tests.e2e.agents import World
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

OLD = ("setarch", "--uname-2.6")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        world = World(make, tmp_path)
        world.start_etcd()
        world.put("config", '{"Network": "10.244.0.0/16"}')
        try:
            yield world
        finally:
            world.close()
            for netns in made:
                netns.close()


def is_on(world: World) -> bool:
    return world.node.call(lambda: has_checksum_offload("overlay.1"))


def test_agent_turns_the_offload_off_and_its_audit_keeps_it_off(world: World) -> None:
    agent = world.agent("--audit-interval=100ms", under=OLD)
    eventually(lambda: agent.get("/readyz")[0] == 200, timeout_s=30, what="ready")
    assert not is_on(world)
    world.node.call(lambda: set_checksum_offload("overlay.1", is_on=True))
    eventually(lambda: not is_on(world), timeout_s=10, what="the audit")
    assert "checksum offload of overlay.1: on -> off" in agent.log


def test_offload_stays_where_it_is_asked_for(world: World) -> None:
    agent = world.agent("--vxlan-checksum-offload=on", under=OLD)
    eventually(lambda: agent.get("/readyz")[0] == 200, timeout_s=30, what="ready")
    assert is_on(world)


def test_agent_leaves_a_kernel_that_is_in_order_alone(world: World) -> None:
    agent = world.agent()
    eventually(lambda: agent.get("/readyz")[0] == 200, timeout_s=30, what="ready")
    assert is_on(world)
