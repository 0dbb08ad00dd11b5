"""Real agents killed, stopped, cut off and begun anew, and etcd killed: whose is each subnet?

Judged by etcd's own history from its first revision. ``OVERLAY_OWNERSHIP_S`` is the
length in seconds, ``OVERLAY_OWNERSHIP_SEED`` the seed.
"""

import base64
import json
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from overlay.lab.etcd import find_etcd_tool
from tests.e2e.agents import PREFIX
from tests.e2e.hub import Hub, HubNode
from tests.kernel.netns import eventually, host_unchanged

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LENGTH_S = float(os.environ.get("OVERLAY_OWNERSHIP_S", "12"))
SEED = int(os.environ.get("OVERLAY_OWNERSHIP_SEED") or secrets.randbelow(1 << 32))
NODES: Final = 4
CONFIG: Final = json.dumps(
    {
        "Network": "10.244.0.0/16",
        "SubnetMin": "10.244.1.0",
        "SubnetMax": f"10.244.{NODES + 1}.0",
        "Backend": {"Type": "vxlan"},
    }
)
TTL: Final = ("--subnet-lease-ttl=4s", "--subnet-lease-renew-margin=2s")
SUBNETS: Final = f"{PREFIX}/subnets/"
_DELETE: Final = 1  # mvccpb.Event.EventType


class Trouble:
    """What goes wrong on a hub, drawn from a seed, and when it ends."""

    def __init__(self, hub: Hub, seed: int) -> None:
        self._hub, self._draw = hub, random.Random(seed)
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._busy: set[int] = set()
        self.done: list[str] = []

    def strike(self) -> None:
        """Do one thing to a node that nothing is done to yet, or to etcd."""
        free = [node for node in self._hub.nodes if node.number not in self._busy]
        if self._draw.random() < 0.1:
            self._hub.etcd.kill()
            self._hub.netns_of_hub.call(self._hub.etcd.start)
            self.done.append("etcd killed")
        elif free:
            node = self._draw.choice(free)
            self._draw.choice((self._kill, self._kill, self._stop, self._cut))(node)

    def pass_time(self, *, all_of_it: bool = False) -> None:
        """End what is due to end."""
        due = [each for each in self._later if all_of_it or each[0] <= time.monotonic()]
        self._later = [each for each in self._later if each not in due]
        for _, end in due:
            end()

    def _until(self, node: HubNode, end: Callable[[], object]) -> None:
        self._busy.add(node.number)

        def finish() -> None:
            end()
            self._busy.discard(node.number)

        self._later.append((time.monotonic() + self._draw.choice((0.2, 1.0, 6.0)), finish))

    def _kill(self, node: HubNode) -> None:
        node.agents[-1].kill()
        node.agents[-1].wait(10)
        is_forgetful = self._draw.random() < 0.5
        if is_forgetful:  # a machine that was made anew: it may get any subnet
            node.path("subnet.env").unlink(missing_ok=True)
        self.done.append("killed")
        self._until(node, lambda: node.start(*TTL))

    def _stop(self, node: HubNode) -> None:
        agent = node.agents[-1]
        agent.send_signal(signal.SIGSTOP)
        self.done.append("stopped")
        self._until(node, lambda: agent.send_signal(signal.SIGCONT))

    def _cut(self, node: HubNode) -> None:
        node.cut_off()
        self.done.append("cut off")
        self._until(node, node.heal)


def history(hub: Hub) -> list[tuple[int, str, str | None]]:
    """Return revision, key and owner of each change there ever was; no owner for a deletion."""
    words = [find_etcd_tool("etcdctl"), f"--endpoints={hub.etcd.endpoint}", "watch", "--prefix"]
    command = ["timeout", "3", *words, SUBNETS, "--rev=1", "-w", "json"]
    told = hub.netns_of_hub.run(*command, check=False)
    changes: list[tuple[int, str, str | None]] = []
    for line in told.splitlines():
        for event in json.loads(line)["Events"]:
            kv = event["kv"]
            key = base64.b64decode(kv["key"]).decode().removeprefix(SUBNETS)
            owner = None
            if event.get("type") != _DELETE:
                owner = json.loads(base64.b64decode(kv["value"]))["Overlay"]["NodeName"]
            changes.append((int(kv["mod_revision"]), key, owner))
    return changes


def judged(changes: list[tuple[int, str, str | None]]) -> list[str]:
    """Return what is wrong: a key that was written over by another than its holder."""
    holders: dict[str, str] = {}
    wrong = []
    for revision, key, owner in changes:
        before = holders.pop(key, None)
        if owner is not None:
            holders[key] = owner
            if before not in {None, owner}:
                wrong.append(f"revision {revision}: {owner} wrote over {key} of {before}")
    return wrong


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with host_unchanged():
        made = Hub(tmp_path)
        try:
            made.begin(CONFIG)
            yield made
        finally:
            made.close()


def test_no_agent_writes_over_anothers_subnet_whatever_becomes_of_them(hub: Hub) -> None:
    for number in range(1, NODES + 1):
        hub.node(number).start(*TTL)
    trouble, until = Trouble(hub, SEED), time.monotonic() + LENGTH_S
    while time.monotonic() < until:
        trouble.strike()
        trouble.pass_time()
        time.sleep(0.2)  # the pace of what goes wrong, not a wait for anything
    trouble.pass_time(all_of_it=True)
    names = sorted(f"n{number}" for number in range(1, NODES + 1))
    eventually(
        lambda: sorted(holder for holder, _ in hub.holders().values()) == names, timeout_s=60
    )
    changes = history(hub)
    again = f"OVERLAY_OWNERSHIP_SEED={SEED}"
    print(f"{len(changes)} changes; {', '.join(trouble.done)}; {again}")
    assert judged(changes) == [], again
    assert len(changes) > NODES
    assert {"killed"} <= set(trouble.done), again


def test_a_blind_renewal_would_be_found() -> None:
    assert judged([(2, "a", "n1"), (3, "a", "n1"), (4, "a", None), (5, "a", "n2")]) == []
    found = judged([(2, "a", "n1"), (3, "a", None), (4, "a", "n2"), (5, "a", "n1")])
    assert found == ["revision 5: n1 wrote over a of n2"]
