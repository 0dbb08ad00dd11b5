"""A lease that goes while its node is not looking: who has the subnet then, and who says so."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.agents import RunningAgent
from tests.e2e.hub import Hub
from tests.kernel.netns import eventually, host_unchanged

pytestmark = pytest.mark.e2e

SHORT = ("--subnet-lease-ttl=3s", "--subnet-lease-renew-margin=1s")
# Two subnets for two nodes: whoever loses his finds one more, and only one.
SMALL = (
    '{"Network": "10.244.0.0/16", "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.2.0",'
    ' "Backend": {"Type": "vxlan"}}'
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with host_unchanged():
        made = Hub(tmp_path)
        try:
            made.begin(SMALL)
            yield made
        finally:
            made.close()


def metric(agent: RunningAgent, name: str) -> float:
    lines = agent.get("/metrics")[1].splitlines()
    return next((float(x.split()[1]) for x in lines if x.startswith(f"{name} ")), -1.0)


def test_pods_of_a_subnet_that_another_node_took_are_stranded_until_deleted(hub: Hub) -> None:
    node = hub.node(1)
    agent = node.start()
    agent.wait_ready()
    (key,) = hub.holders()
    _, lost = node.add_pod("one")
    assert metric(agent, "overlay_stranded_pods") == 0
    hub.give_to_another(key)
    eventually(lambda: metric(agent, "overlay_stranded_pods") == 1, timeout_s=20)
    agent.wait_ready()
    (mine,) = (k for k, (holder, *_) in hub.holders().items() if holder == "n1")
    assert mine != key
    words = ("shop/pod-one", "container one", lost)
    body = agent.get("/readyz")[1]
    status = node.status()
    (problem,) = (p["text"] for p in status["problems"])
    for text in (agent.log, body, problem):
        assert all(word in text for word in words), text
    assert agent.log.count("shop/pod-one") == 1, "said once"
    assert [a["container"] for a in status["stranded"]] == ["one"]
    _, fresh = node.add_pod("two")
    assert fresh.rsplit(".", 1)[0] == mine.rsplit(".", 1)[0]
    assert node.cni("DEL", "one")[0] == 0
    assert metric(agent, "overlay_stranded_pods") == 0
    assert "stranded" not in agent.get("/readyz")[1]
    assert node.status()["stranded"] == []


def test_stranded_pods_are_named_again_after_a_restart(hub: Hub) -> None:
    node = hub.node(1)
    agent = node.start()
    agent.wait_ready()
    (key,) = hub.holders()
    node.add_pod("one")
    agent.process.kill()
    agent.process.wait(5)
    hub.give_to_another(key)
    again = node.start()
    again.wait_ready()
    assert "shop/pod-one" in again.log
    assert metric(again, "overlay_stranded_pods") == 1


def test_lease_that_ran_out_is_claimed_again_with_the_same_subnet(hub: Hub) -> None:
    agent = hub.node(1).start(*SHORT)
    agent.wait_ready()
    before = hub.holders()
    agent.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: not hub.holders(), timeout_s=20)
    finally:
        agent.process.send_signal(signal.SIGCONT)
    eventually(lambda: hub.holders() == before, timeout_s=20, what=agent.log)
    agent.wait_ready()


def test_node_that_stood_still_past_its_lease_does_not_write_over_the_new_owner(hub: Hub) -> None:
    agent = hub.node(1).start(*SHORT)
    agent.wait_ready()
    (key,) = hub.holders()
    agent.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: not hub.holders(), timeout_s=20)
        hub.store(f"s.reserve(parse_subnet({key.replace('-', '/')!r}), 'other') and None")
        after = hub.holders()
    finally:
        agent.process.send_signal(signal.SIGCONT)
    eventually(lambda: len(hub.holders()) == 2, timeout_s=20)
    holders = hub.holders()
    assert holders[key] == after[key]
    assert "is lost to another node" in agent.log
    agent.wait_ready()


def test_partition_lease_lost_subnet_claimed_compaction_heal(hub: Hub) -> None:
    """The history after which both keep the subnet where writes are blind."""
    first, second = hub.node(1), hub.node(2)
    agent = first.start(*SHORT)
    agent.wait_ready()
    (key,) = hub.holders()
    first.cut_off()
    eventually(lambda: not hub.holders(), timeout_s=20)
    second.state.mkdir()
    other_subnet = key.replace(".0-24", ".1/24")
    (second.state / "subnet.env").write_text(f"FLANNEL_SUBNET={other_subnet}\n")
    second.start(*SHORT).wait_ready()
    assert hub.holders() == {key: ["n2", "192.0.2.2"]}
    hub.compact()
    first.heal()
    eventually(lambda: len(hub.holders()) == 2, timeout_s=30, what=agent.log)
    for _ in range(5):  # five lives of a lease: nobody takes anything back
        holders = hub.holders()
        assert holders[key] == ["n2", "192.0.2.2"]
        assert sorted(holder for holder, _ in holders.values()) == ["n1", "n2"]
        revision = hub.store("s.view().revision")
        eventually(lambda r=revision: hub.store("s.view().revision") > r + 1, timeout_s=20)  # type: ignore[misc]
    agent.wait_ready()
    assert "is lost to another node" in agent.log


def test_store_restored_from_a_backup_without_the_lease(hub: Hub) -> None:
    """The revision goes backwards: what it then shows counts, however old it looks."""
    hub.etcd.stop()
    backup = hub.place / "backup"
    shutil.copytree(hub.place / "etcd", backup)
    hub.start_etcd()
    node = hub.node(1)
    agent = node.start()
    agent.wait_ready()
    (key,) = hub.holders()
    hub.store(f"[s.write_config({SMALL!r}) for _ in range(20)] and None")
    hub.etcd.stop()
    shutil.rmtree(hub.place / "etcd")
    backup.rename(hub.place / "etcd")
    hub.start_etcd()
    eventually(lambda: hub.holders() == {key: ["n1", "192.0.2.1"]}, timeout_s=20, what=agent.log)
    agent.wait_ready()


def test_store_restored_from_a_backup_in_which_another_node_has_the_subnet(hub: Hub) -> None:
    hub.store("s.reserve(parse_subnet('10.244.1.0/24'), 'other') and None")
    hub.etcd.stop()
    backup = hub.place / "backup"
    shutil.copytree(hub.place / "etcd", backup)
    hub.start_etcd()
    hub.store("s.release(s.view().leases['10.244.1.0-24'])")
    node = hub.node(1)
    node.state.mkdir()
    (node.state / "subnet.env").write_text("FLANNEL_SUBNET=10.244.1.1/24\n")
    agent = node.start()
    agent.wait_ready()
    assert set(hub.holders()) == {"10.244.1.0-24"}
    hub.etcd.stop()
    shutil.rmtree(hub.place / "etcd")
    backup.rename(hub.place / "etcd")
    hub.start_etcd()
    eventually(lambda: "10.244.2.0-24" in hub.holders(), timeout_s=20, what=agent.log)
    assert hub.holders()["10.244.1.0-24"] == ["other"]
    agent.wait_ready()
