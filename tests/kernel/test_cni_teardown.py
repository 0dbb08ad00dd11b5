"""GC, the next start and an ADD of several interfaces, where one of many goes wrong."""

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from overlay.agent.attachments import Attachments
from overlay.agent.cni import CniService
from overlay.agent.layer2 import Layer2
from overlay.agent.status import RUNNING, Status
from overlay.kernel import pods
from overlay.kernel.base import KernelError
from overlay.kernel.pod_namespace import PodNamespace
from overlay.model.attachment import AttachmentKey
from tests.kernel.netns import MakeNetns, Netns, eventually
from tests.unit.worlds import site

pytestmark = pytest.mark.kernel

T = TypeVar("T")


class Node:
    """An agent's service on a node, without the rest of the agent."""

    def __init__(self, netns: Netns, place: Path) -> None:
        self.netns, self._place = netns, place
        self.restart()

    def restart(self) -> None:
        status = Status()
        status.update(phase=RUNNING, site=site(), mtu=1450)
        self.attachments = Attachments(self._place)
        self.service = self.netns.call(
            lambda: CniService(status, self.attachments, Layer2(self.attachments))
        )

    def ask(
        self, command: str, container: str = "", interface: str = "eth0", pod: Path | None = None,
        **config: Any,
    ) -> tuple[int, Any]:  # fmt: skip
        variables = {"CNI_COMMAND": command, "CNI_CONTAINERID": container}
        variables |= {"CNI_NETNS": str(pod or ""), "CNI_IFNAME": interface if container else ""}
        document = {"cniVersion": "1.1.0", "name": "fabric", "type": "overlay", **config}

        def inside() -> tuple[int, bytes]:
            netns = os.open(pod, os.O_RDONLY | os.O_CLOEXEC) if pod is not None else None
            try:
                return self.service.answer(
                    variables,
                    json.dumps(document).encode(),
                    PodNamespace(netns) if netns is not None else None,
                )
            finally:
                if netns is not None:
                    os.close(netns)

        status, output = self.netns.call(inside)
        return status, json.loads(output) if output else None

    def links(self) -> list[str]:
        links = self.netns.ip_json("link")
        return [each["ifname"] for each in links if each["ifname"].startswith("opod")]

    def record(self, container: str) -> Path:
        (path,) = (p for p in self._place.glob("*.json") if f'"{container}"' in p.read_text())
        return path

    def spoil(self, container: str) -> Callable[[], None]:
        """Make it impossible to forget a container; return what undoes that."""
        path = self.record(container)
        text = path.read_text()
        path.unlink()
        path.mkdir()  # which unlink(2) refuses, even to root

        def mend() -> None:
            path.rmdir()
            path.write_text(text)

        return mend


@pytest.fixture
def node(make_netns: MakeNetns, tmp_path: Path) -> Node:
    return Node(make_netns(), tmp_path / "attachments")


@pytest.fixture
def three(node: Node, make_netns: MakeNetns) -> list[Netns]:
    """Three pods that are attached."""
    made = [make_netns() for _ in range(3)]
    for number, pod in enumerate(made):
        assert node.ask("ADD", f"c{number}", pod=pod.path)[0] == 0
    return made


@pytest.mark.usefixtures("three")
def test_collection_goes_on_past_what_fails_and_tells_it_once(node: Node) -> None:
    mend = node.spoil("c0")
    stale: dict[str, Any] = {"cni.dev/valid-attachments": []}
    status, error = node.ask("GC", **stale)
    assert (status, error["code"]) == (1, 102)
    assert error["msg"].startswith("1 stale attachments stay: eth0 of container c0 in network fab")
    assert [a.key.container for a in node.attachments.list()] == ["c0"]
    assert node.links() == []
    mend()
    assert node.ask("GC", **stale) == (0, None)
    assert node.attachments.list() == []


def test_collection_takes_links_that_lost_their_records(
    node: Node, three: list[Netns], make_netns: MakeNetns
) -> None:
    """Only those of the network, and none that the runtime knows or whose record is not read."""
    other = make_netns()
    assert node.ask("ADD", "c9", pod=other.path, name="other")[0] == 0
    unread = node.record("c2")
    for path in (node.record("c0"), node.record("c1"), node.record("c9")):
        path.unlink()
    unread.write_text(unread.read_text().replace('"format": 1', '"format": 9'))
    node.restart()
    node.netns.call(node.service.recover)
    assert node.attachments.list() == []
    valid: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    assert node.ask("GC", **valid) == (0, None)
    assert ["eth0" in pod.ip("link") for pod in (*three, other)] == [False, True, True, True]
    assert len(node.attachments.held()) == 6, "two of each that is there"
    stale: dict[str, Any] = {"cni.dev/valid-attachments": []}
    assert node.ask("GC", **stale) == (0, None)
    assert ["eth0" in pod.ip("link") for pod in (*three, other)] == [False, False, True, True]


@pytest.mark.usefixtures("three")
def test_start_goes_on_past_what_cannot_be_removed(node: Node) -> None:
    for name in node.links():
        node.netns.ip("link", "del", name)
    node.restart()
    mend = node.spoil("c1")
    node.netns.call(node.service.recover)
    assert [a.key.container for a in node.attachments.list()] == ["c1"]
    mend()
    node.netns.call(node.service.recover)
    assert node.attachments.list() == []


def test_start_goes_on_where_the_kernel_refuses_one(
    node: Node, three: list[Netns], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the middle of an ADD; one of three links cannot be removed now."""
    for attachment in node.attachments.list():
        record = next(p for p in node._place.glob("*.json") if attachment.link in p.read_text())
        record.write_text(record.read_text().replace("true }", "false}"))
    node.restart()
    stuck = pods.link_name(AttachmentKey("fabric", "c1", "eth0"))
    detach = pods.detach

    def refuse(name: str) -> bool:
        if name == stuck:
            msg = f"{name}: refused"
            raise KernelError(msg)
        return detach(name)

    with monkeypatch.context() as patch:
        patch.setattr(pods, "detach", refuse)
        node.netns.call(node.service.recover)
    assert [a.key.container for a in node.attachments.list()] == ["c1"]
    assert node.links() == [stuck]
    node.netns.call(node.service.recover)
    assert (node.attachments.list(), node.links()) == ([], [])
    assert ["eth0" in pod.ip("link") for pod in three] == [False] * 3


@pytest.mark.parametrize("mode", ["ptp", "bridge"])
def test_interfaces_of_one_pod_may_come_at_the_same_time(
    node: Node, make_netns: MakeNetns, mode: str
) -> None:
    names = [f"net{number}" for number in range(5)]
    with ThreadPoolExecutor(len(names)) as pool:
        for _ in range(4):
            pod = make_netns()
            barrier = threading.Barrier(len(names))

            def add(name: str, pod: Netns = pod, barrier: threading.Barrier = barrier) -> Any:
                barrier.wait()
                return node.ask("ADD", "one", name, pod.path, mode=mode)

            answers = list(pool.map(add, names))
            assert [status for status, _ in answers] == [0] * len(names), answers
            rules = pod.ip_json("rule", "show")
            own = {ip["address"].partition("/")[0] for _, a in answers for ip in a["ips"][:1]}
            assert {rule["src"] for rule in rules if rule["priority"] == 20320} == own
            for name in names:
                assert node.ask("DEL", "one", name, pod.path) == (0, None)
    assert node.links() in ([], ["opod-bridge"])


def test_addresses_of_a_namespace_that_went_are_free_after_a_start(
    node: Node, make_netns: MakeNetns
) -> None:
    """Of another plugin's pods there is no link of ours that would tell."""
    ipam: dict[str, Any] = {"type": "bridge", "ipam": {"type": "overlay"}}
    gone, lasting = make_netns(), make_netns()
    for name, pod in (("gone", gone), ("lasting", lasting)):
        assert node.ask("ADD", name, pod=pod.path, **ipam)[0] == 0
    assert node.ask("ADD", "untold", **ipam, pod=None)[0] == 1, "CNI_NETNS is needed"
    node.restart()
    node.netns.call(node.service.recover)
    assert len(node.attachments.list()) == 2, "both are there"
    inhabitant = gone.start("sleep", "60")
    lives_in = Path(f"/proc/{inhabitant.pid}/ns/net")
    eventually(lambda: lives_in.samefile(gone.path))
    gone.close()
    node.restart()
    node.netns.call(node.service.recover)
    assert len(node.attachments.list()) == 2, "a process lives in it"
    inhabitant.kill()
    inhabitant.wait(10)
    node.restart()
    node.netns.call(node.service.recover)
    assert [a.key.container for a in node.attachments.list()] == ["lasting"]
