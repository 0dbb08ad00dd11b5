"""Requests that cross each other, and an agent killed between any two steps of one.

All speak the plugin's protocol to the real agent, on the kernel. After each
round what the agent knows and what the kernel has must be the same; at the end
nothing may be left.
"""

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from tests.e2e.agents import World
from tests.e2e.test_cni import CONFIG
from tests.e2e.test_cni_stress import EXISTS, Answer, CutOffError, ask
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

ROUNDS: Final = 120
KILLS: Final = 12
MODES: Final = ("ptp", "bridge")
SEED: Final = int(os.environ.get("OVERLAY_CNI_STRESS_SEED", "1"))


class Node:
    """An agent, a pod, and what a runtime asks. GC finds all stale."""

    def __init__(self, world: World, pod: Netns) -> None:
        self.world, self.pod = world, pod
        self.state = world.place / "state"
        self.path = str(self.state / "cni.sock")
        self.start()

    def start(self) -> None:
        self.agent = self.world.agent("--audit-interval=2s")
        self.agent.wait_ready()

    def ask(self, command: str, mode: str) -> Answer:
        pod = self.pod
        is_one = command in {"ADD", "DEL"}
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "one" if is_one else "",
            "CNI_NETNS": str(pod.path) if is_one else "",
            "CNI_IFNAME": "eth0" if is_one else "",
            "CNI_PATH": "/opt/cni/bin",
        }
        config = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay", "mode": mode}
        stale: dict[str, Any] = {} if is_one else {"cni.dev/valid-attachments": []}
        return ask(self.path, variables, {**config, **stale}, pod.path if is_one else None)

    def insist(self, command: str, mode: str) -> None:
        def is_done() -> bool:
            with contextlib.suppress(CutOffError):
                return self.ask(command, mode) == (0, None)
            return False

        eventually(is_done, timeout_s=20.0)

    def known(self) -> dict[str, Any]:
        """Return what ``overlayctl ipam`` asks for."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.path)
            client.sendall(b'{"overlay": 1, "call": "ipam"}\n')
            text = b"".join(iter(lambda: client.recv(65536), b""))
        result: dict[str, Any] = json.loads(text)["result"]
        return result

    def left(self) -> list[str]:
        """Return everything in kernel and files that belongs to pods."""
        node = self.world.node
        links = [link["ifname"] for link in node.ip_json("link")]
        routes = [
            r["dst"] for v in ("-4", "-6") for r in node.ip_json(v, "route", "show", "proto", "80")
        ]
        rules = node.nft("list", "tables").splitlines()
        return [
            *(name for name in links if name.startswith("opod")),
            *routes,
            *(table for table in rules if "bridge" in table),
            *(path.name for path in (self.state / "attachments").glob("*.json")),
            *(["eth0 of the pod"] if "eth0" in self.pod.ip("link") else []),
        ]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    with host_unchanged():
        world = World(make, tmp_path_factory.mktemp("races"))
        try:
            world.start_etcd()
            world.put("config", CONFIG)
            yield Node(world, make())
        finally:
            world.close()
            for netns in made:
                netns.close()


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    yield
    for mode in MODES:
        node.insist("GC", mode)
    eventually(lambda: node.left() == [], timeout_s=20.0, what=f"an end without {node.left()}")


def in_step(node: Node) -> None:
    """What is known is there, whole, and nothing else is."""
    known = node.known()
    held = known["attachments"]
    assert known["strays"] == []
    assert [a for a in held if not (a["live"] and a["complete"])] == []
    addresses = [address for a in held for address in a["addresses"]]
    assert len(addresses) == len(set(addresses))
    assert ("eth0" in node.pod.ip("link")) == bool(held)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "commands",
    [
        ("ADD", "DEL"),
        ("ADD", "ADD"),
        ("ADD", "DEL", "ADD"),
        ("ADD", "DEL", "DEL", "ADD", "GC"),
    ],
    ids="-".join,
)
def test_requests_for_one_interface_that_cross(
    node: Node, mode: str, commands: tuple[str, ...]
) -> None:
    chance = random.Random(f"{SEED}/{mode}/{commands}")
    seen: set[tuple[bool, ...]] = set()
    with ThreadPoolExecutor(len(commands)) as pool:
        for _ in range(ROUNDS if mode == "ptp" else ROUNDS // 3):
            barrier = threading.Barrier(len(commands))
            delays = [chance.choice((0.0, chance.random() * 0.003)) for _ in commands]

            def work(command: str, delay_s: float, barrier: threading.Barrier = barrier) -> Answer:
                barrier.wait()
                time.sleep(delay_s)  # another interleaving each time
                return node.ask(command, mode)

            answers = list(pool.map(work, commands, delays))
            for command, (status, document) in zip(commands, answers, strict=True):
                if command != "ADD":
                    assert (status, document) == (0, None)
                elif status:
                    assert document["code"] == EXISTS, document
            in_step(node)
            seen.add(tuple(status == 0 for status, _ in answers))
            assert node.ask("DEL", mode) == (0, None)
    if commands == ("ADD", "ADD"):
        assert seen == {(True, False), (False, True)}, "one of two, not always the same"


def test_collection_spares_what_is_being_attached(node: Node) -> None:
    """The runtime made its list before: an ADD under way is not in it."""
    kept = 0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            adding = pool.submit(node.ask, "ADD", "ptp")
            collected = pool.submit(node.ask, "GC", "ptp")
            assert adding.result()[0] == 0
            assert collected.result() == (0, None)
            in_step(node)
            kept += bool(node.known()["attachments"])
            node.ask("DEL", "ptp")
    assert kept > 0


@pytest.mark.parametrize("mode", MODES)
def test_agent_killed_between_any_two_steps_of_an_add(node: Node, mode: str) -> None:
    chance = random.Random(f"{SEED}/{mode}")
    cut_off = 0
    for number in range(KILLS):
        adding = threading.Event()

        def work(adding: threading.Event = adding) -> bool:
            adding.set()
            try:
                return node.ask("ADD", mode)[0] == 0
            except CutOffError:
                return False

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(work)
            adding.wait(20)
            time.sleep(chance.random() * (0.004 if mode == "ptp" else 0.02))
            node.agent.process.kill()
            node.agent.process.wait(10)
            is_attached = answer.result()
        cut_off += not is_attached
        if number % 2:  # a table that is there, or not, when the next one starts
            node.world.node.nft("delete", "table", "bridge", "overlay", check=False)
        node.start()
        in_step(node)
        assert bool(node.known()["attachments"]) >= is_attached, "what was answered holds"
        assert node.ask("DEL", mode) == (0, None)
        status, _ = node.ask("ADD", mode)
        assert status == 0, "and the address, the names, the rules are free again"
        assert node.ask("DEL", mode) == (0, None)
    assert cut_off > 0
