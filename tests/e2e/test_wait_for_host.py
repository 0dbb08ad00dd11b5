"""An agent told to wait: where others end with a status it is alive, unready, and says why."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.agents import BIN, RunningAgent, World
from tests.e2e.test_cni import CONFIG
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

# Each agent in a PID namespace of its own, as a container has one.
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
Question = Callable[[str], tuple[int, str]]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        here = World(make, tmp_path)
        here.start_etcd()
        here.put("config", CONFIG)
        yield here
        here.close()
        for netns in made:
            netns.close()


def inner_pid(agent: RunningAgent) -> str:
    """Return the process that runs in the container, by the name that it has outside."""
    pid = agent.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    (inner,) = eventually(lambda: children.read_text().split(), what="a process in the container")
    return inner


def probe(agent: RunningAgent, question: str) -> tuple[int, str]:
    """Execute a probe in the agent's container, as a kubelet does."""
    enter = ["nsenter", f"--target={inner_pid(agent)}", "--pid", "--net", "--mount"]
    done = subprocess.run(
        [*enter, str(BIN / "overlayd"), "probe", question],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


def wait_for_no(agent: RunningAgent, reason: str) -> None:
    """Wait until the agent is not ready for a reason, and alive all the same."""
    eventually(
        lambda: agent.log and reason in probe(agent, "ready")[1],
        timeout_s=20,
        what=f"reason {reason!r}, log {agent.log}",
    )
    assert probe(agent, "ready")[0] == 1
    assert probe(agent, "live") == (0, "")
    assert agent.process.poll() is None


def wait_ready(agent: RunningAgent) -> None:
    eventually(
        lambda: probe(agent, "ready") == (0, ""), timeout_s=30, what=f"ready, log {agent.log}"
    )


def test_second_agent_waits_until_the_first_is_gone(world: World) -> None:
    first = world.agent("--wait-for-host", under=CONTAINER)
    wait_ready(first)
    second = world.agent("--wait-for-host", under=CONTAINER)
    wait_for_no(second, "another overlayd of this node answers on")
    assert probe(first, "ready") == (0, "")
    assert second.get("/readyz")[0] == 200, "by its port only the first is asked"
    terminate(first)
    wait_ready(second)
    assert world.leases()


def terminate(agent: RunningAgent) -> None:
    """End what runs in the container; the program around it ends by itself."""
    subprocess.run(["kill", inner_pid(agent)], check=True)
    assert agent.process.wait(20) == 0


def test_busy_port_is_waited_for(world: World) -> None:
    listener = world.node.socket(2, 1)  # AF_INET, SOCK_STREAM
    listener.bind(("127.0.0.1", 9470))
    listener.listen(1)
    agent = world.agent("--wait-for-host", under=CONTAINER)
    wait_for_no(agent, "--healthz-port 9470: Address already in use")
    listener.close()
    wait_ready(agent)


def test_node_without_an_underlay_waits_for_one(world: World) -> None:
    def rename(old: str, new: str) -> None:
        world.node.ip("link", "set", old, "down")
        world.node.ip("link", "set", old, "name", new)
        world.node.ip("link", "set", new, "up")
        # The kernel took it with the link.
        world.node.ip("addr", "add", "2001:db8::1/64", "dev", new, "nodad")

    rename("eth0", "late")
    agent = world.agent("--wait-for-host", under=CONTAINER)
    wait_for_no(agent, "waiting for this host; --iface eth0")
    rename("late", "eth0")
    wait_ready(agent)


def test_device_of_another_program_is_waited_for(world: World) -> None:
    vxlan = "type vxlan id 1 dev eth0 dstport 8472 nolearning"
    world.node.ip("link", "add", "flannel.1", *vxlan.split())
    agent = world.agent("--wait-for-host", under=CONTAINER)
    wait_for_no(agent, "flannel.1")
    world.node.ip("link", "delete", "flannel.1")
    wait_ready(agent)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--etcd-endpoints=ftp://nowhere", "--etcd-endpoints"),
        ("--etcd-cafile=/nowhere/ca.crt", "--etcd-cafile"),
        ("--no-such-flag", "--no-such-flag"),
    ],
)
def test_flag_that_cannot_be_used_is_a_reason_and_no_end(
    world: World, flag: str, reason: str
) -> None:
    agent = world.agent("--wait-for-host", flag, under=CONTAINER)
    wait_for_no(agent, reason)
    assert agent.log.count(reason) == 1
    terminate(agent)
