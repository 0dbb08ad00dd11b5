"""A full disk and spoiled files under the real agent: no address is given twice."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hub import Hub, HubNode
from tests.kernel.netns import Netns, eventually, host_unchanged

pytestmark = pytest.mark.e2e

IO_FAILURE = 5  # CNI specification 1.1.0, "Error"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with host_unchanged():
        made = Hub(tmp_path)
        try:
            made.begin()
            yield made
        finally:
            made.close()


@pytest.fixture
def small_disk(hub: Hub) -> Iterator[tuple[HubNode, list[str]]]:
    """Return a node whose state lies on a disk of 64 KiB, and what executes its agent there."""
    script = "mount -t tmpfs -o size=64k,mode=700 tmpfs /mnt && echo ready && exec sleep infinity"
    keeper = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n"
        node = hub.node(1)
        node.state, node.root = Path("/mnt"), Path(f"/proc/{keeper.pid}/root")
        yield node, ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt"]
    finally:
        keeper.kill()
        keeper.wait(10)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            pass


def links(node: HubNode) -> list[str]:
    found = node.netns.ip_json("link", "show", "type", "veth")
    return sorted(link["ifname"] for link in found if link["ifname"].startswith("opod"))


def test_full_disk_refuses_new_pods_keeps_the_others_and_passes(
    hub: Hub, small_disk: tuple[HubNode, list[str]]
) -> None:
    node, prefix = small_disk
    agent = node.start(prefix=prefix)
    agent.wait_ready()
    _, first = node.add_pod("one")
    before = links(node)
    fill(node.path("filler"))
    status, result = node.cni("ADD", "two", hub.netns())
    assert (status, result["code"]) == (1, IO_FAILURE)
    assert "No space left" in result["msg"] + result.get("details", "")
    assert links(node) == before, "nothing of it stays"
    assert agent.get("/readyz")[0] == 200
    agent.process.kill()
    agent.process.wait(5)
    again = node.start(prefix=prefix)
    again.wait_ready()
    held = json.loads(node.overlayctl("-o", "json", "ipam", "list"))["attachments"]
    assert [a["addresses"] for a in held] == [[first]]
    assert node.cni("ADD", "three", hub.netns())[0] == 1
    node.path("filler").unlink()
    assert node.add_pod("four")[1] != first
    assert node.cni("DEL", "one")[0] == 0


def test_agent_starts_on_a_disk_that_was_always_full(
    hub: Hub, small_disk: tuple[HubNode, list[str]]
) -> None:
    node, prefix = small_disk
    fill(node.path("filler"))
    agent = node.start(prefix=prefix)
    agent.wait_for_reason("subnet.env: No space left on device")
    assert node.cni("ADD", "one", hub.netns())[0] == 1
    assert len(hub.holders()) == 1, "leased, and forwarding"
    node.path("filler").unlink()
    agent.wait_ready()
    node.add_pod("two")


def test_pods_whose_records_are_spoiled_keep_their_addresses(hub: Hub) -> None:
    node = hub.node(1)
    agent = node.start()
    agent.wait_ready()
    (key,) = hub.holders()
    names = ("emptied", "cut-off", "garbage", "newer", "lost", "whole")
    pods: dict[str, tuple[Netns, str]] = {name: node.add_pod(name) for name in names}
    agent.process.kill()
    agent.process.wait(5)
    folder = node.path("attachments")
    records = {json.loads(p.read_text())["container"]: p for p in folder.glob("*.json")}
    text = {name: path.read_text() for name, path in records.items()}
    records["emptied"].write_text("")
    records["cut-off"].write_text(text["cut-off"][:150])
    records["garbage"].write_bytes(b"\xff\x00" * 100)
    records["newer"].write_text(text["newer"].replace('"format": 1', '"format": 99'))
    records["lost"].unlink()
    (folder / "boot_id").write_text("")
    node.path("subnet.env").write_text("FLANNEL_SUBNET=10.2\x00")
    (folder / "0123456789abcdef0123456789abcdef.json").mkdir()

    again = node.start()
    again.wait_ready()
    assert set(hub.holders()) == {key}
    taken = {address for _, address in pods.values()}
    given = [node.add_pod(f"new-{number}")[1] for number in range(4)]
    assert taken.isdisjoint(given)
    assert len(set(given)) == 4
    assert node.cni("ADD", "newer", pods["newer"][0])[0] == 1, "it is attached"
    assert text["newer"].replace('"format": 1', '"format": 99') == records["newer"].read_text()
    (used,) = json.loads(node.overlayctl("-o", "json", "ipam", "list"))["ranges"]
    assert used["used"] == 10
    for name in names:
        assert node.cni("DEL", name)[0] == 0
    assert len(links(node)) == 4
    (used,) = json.loads(node.overlayctl("-o", "json", "ipam", "list"))["ranges"]
    assert used["used"] == 4
    left = sorted(path.suffix or path.name for path in folder.iterdir() if path.is_file())
    assert left == [*[".json"] * 4, "boot_id", "last"]


def test_address_of_a_pod_without_record_is_free_when_the_pod_is_gone(hub: Hub) -> None:
    """In a range so small that the next pod needs that very address."""
    hub.store(
        's.write_config(\'{"Network": "10.244.0.0/24", "SubnetLen": 29}\', force=True) and None'
    )
    node = hub.node(1)
    agent = node.start()
    agent.wait_ready()
    pods = [node.add_pod(f"p{number}") for number in range(5)]
    agent.process.kill()
    agent.process.wait(5)
    for path in node.path("attachments").glob("*.json"):
        if json.loads(path.read_text())["container"] == "p3":
            path.unlink()
    node.start().wait_ready()
    status, result = node.cni("ADD", "late", hub.netns())
    assert (status, "all 5 addresses" in result["msg"]) == (1, True)
    pods[3][0].close()  # its link goes with it; no runtime says so
    eventually(lambda: len(links(node)) == 4)
    assert node.add_pod("late")[1] == pods[3][1]
