"""Two real nodes with one identity, or one address: the second refuses, the first works on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hub import Hub
from tests.kernel.netns import eventually, host_unchanged

pytestmark = pytest.mark.e2e

MACHINE_ID = "4c4c4544004a3510804bb4c04f4e3332"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with host_unchanged():
        made = Hub(tmp_path)
        try:
            made.begin()
            yield made
        finally:
            made.close()


def clone(hub: Hub, hostname: str) -> list[str]:
    """Return what executes a program on a host that was cloned: one machine id, its own name."""
    path = hub.place / "machine-id"
    path.write_text(f"{MACHINE_ID}\n")
    script = f'set -e; hostname {hostname}; mount --bind {path} /etc/machine-id; exec "$@"'
    return ["unshare", "--mount", "--uts", "sh", "-c", script, "sh"]


@pytest.mark.skipif(not Path("/etc/machine-id").exists(), reason="nothing to mount a clone's over")
def test_cloned_host_refuses_with_both_names_and_the_first_works_on(hub: Hub) -> None:
    first, second = hub.node(1), hub.node(2)
    agent = first.start(name=None, prefix=clone(hub, "alpha"))
    agent.wait_ready()
    before = hub.holders()
    status, line = second.start(name=None, prefix=clone(hub, "beta")).wait_exit()
    assert status == 6, line
    for word in ("alpha", "192.0.2.1", "beta", "192.0.2.2", MACHINE_ID, "--node-name"):
        assert word in line
    assert hub.holders() == before
    assert agent.get("/readyz")[0] == 200
    eventually(lambda: "node beta (192.0.2.2) starts under the identity" in agent.log)
    assert "overlay.1" not in second.netns.ip("link")


def test_clone_of_name_and_address_too_is_told_by_its_boot(hub: Hub) -> None:
    first, second = hub.node(1), hub.node(2)
    agent = first.start("--public-ip=192.0.2.77", name="twin")
    agent.wait_ready()
    before = hub.holders()
    status, line = second.start("--public-ip=192.0.2.77", name="twin").wait_exit()
    assert status == 6, line
    assert "is alive and holds" in line
    assert hub.holders() == before
    assert agent.get("/readyz")[0] == 200


def test_two_nodes_with_one_public_ip_the_second_refuses_with_both_names(hub: Hub) -> None:
    first, second = hub.node(1), hub.node(2)
    agent = first.start("--public-ip=192.0.2.77")
    agent.wait_ready()
    before = hub.holders()
    status, line = second.start("--public-ip=192.0.2.77").wait_exit()
    assert status == 6, line
    for word in ("node n2", "node n1", "192.0.2.77", "overlayctl leases release"):
        assert word in line
    assert hub.holders() == before
    assert agent.get("/readyz")[0] == 200


def test_node_that_comes_back_with_another_address_keeps_its_subnet(hub: Hub) -> None:
    node = hub.node(1)
    agent = node.start(name="mover")
    agent.wait_ready()
    (subnet,) = hub.holders()
    assert agent.terminate() == 0
    node.netns.ip("addr", "add", "192.0.2.99/24", "dev", "eth0")
    node.netns.ip("addr", "del", "192.0.2.1/24", "dev", "eth0")
    node.start(name="mover").wait_ready()
    assert hub.holders() == {subnet: ["mover", "192.0.2.99"]}


def test_of_two_clones_that_start_in_one_moment_one_stays(hub: Hub) -> None:
    nodes = [hub.node(number) for number in (1, 2)]
    agents = [node.start(name="twin") for node in nodes]

    def ended() -> list[int]:
        return [status for agent in agents if (status := agent.process.poll()) is not None]

    assert eventually(ended, timeout_s=20) == [6]
    (stays,) = (agent for agent in agents if agent.process.poll() is None)
    stays.wait_ready()
    address = f"192.0.2.{agents.index(stays) + 1}"
    assert [*hub.holders().values()] == [["twin", address]]


def test_restart_asks_nobody(hub: Hub) -> None:
    node = hub.node(1)
    agent = node.start()
    agent.wait_ready()
    agent.process.kill()
    agent.process.wait(5)
    again = node.start()
    again.wait_ready()
    assert "alive" not in again.log


# The second one's pause at least: a renewal is due when the first is back.
DUE = ("--subnet-lease-ttl=30s", "--subnet-lease-renew-margin=28s")


@pytest.mark.parametrize("flags", [(), DUE], ids=["", "renewal due"])
def test_first_that_was_cut_off_gives_way_loudly_and_does_not_write(
    hub: Hub, flags: tuple[str, ...]
) -> None:
    first, second = hub.node(1), hub.node(2)
    agent = first.start(*flags, name="twin")
    agent.wait_ready()
    (subnet,) = hub.holders()
    first.cut_off()
    other = second.start(name="twin")
    other.wait_ready()
    after = {subnet: ["twin", "192.0.2.2"]}
    assert hub.holders() == after
    first.heal()
    reason = " ".join(agent.wait_for_reason("is alive and holds")["reasons"])
    for word in ("192.0.2.1", "192.0.2.2", "twin", "--node-name"):
        assert word in reason
    assert hub.holders() == after, "nothing is written over"
    assert other.get("/readyz")[0] == 200
    assert agent.log.count("is not as it was seen") < 5, "it does not try again and again"
    status, result = first.cni("ADD", "late", hub.netns())
    assert (status, result["code"]) == (1, 11), "it gives no address of another's subnet"


def test_running_node_does_not_take_the_address_of_another(hub: Hub) -> None:
    first, second = hub.node(1), hub.node(2)
    first.start().wait_ready()
    agent = second.start()
    agent.wait_ready()
    before = hub.holders()
    second.netns.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    second.netns.ip("addr", "del", "192.0.2.2/24", "dev", "eth0")
    # It cannot reach etcd any more: both have one address. What it may not do is write.
    agent.wait_for_reason("has the address 192.0.2.1 of node n1")
    assert hub.holders() == before


def test_twin_of_a_node_whose_lease_ran_out_is_asked_before_anything_is_claimed(hub: Hub) -> None:
    """The second claims anew, for there is nothing to adopt; the first is then the second."""
    first, second = hub.node(1), hub.node(2)
    agent = first.start("--subnet-lease-ttl=3s", "--subnet-lease-renew-margin=1s", name="twin")
    agent.wait_ready()
    first.cut_off()
    eventually(lambda: not hub.holders(), timeout_s=20)
    other = second.start(name="twin")
    other.wait_ready()
    after = hub.holders()
    first.heal()
    reason = " ".join(agent.wait_for_reason("is alive and holds")["reasons"])
    assert all(word in reason for word in ("192.0.2.1", "192.0.2.2", "twin"))
    assert hub.holders() == after
    assert other.get("/readyz")[0] == 200
