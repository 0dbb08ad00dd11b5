"""What is held on a node outlives the agent, is told once, and ends by an operator's word."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from overlay.agent.hold import Hold, NothingHeldError
from overlay.agent.status import Status
from overlay.model.lease import Lease
from overlay.plan.prune import FOR_EVER, PruneLimit, parse_limit
from tests.unit.worlds import by_key, lease

OWN = lease(1)
PEERS = by_key(OWN, *(lease(i) for i in range(2, 22)))
REST = by_key(OWN)


class Node:
    """One node whose agent may be started again; ``now`` is the machine's monotonic clock."""

    def __init__(self, place: Path, limit: PruneLimit | None = None) -> None:
        self.now = 100.0
        self.path = place / "held-peers.json"
        self.limit = limit if limit is not None else PruneLimit()
        self.start()

    def start(self) -> None:
        self.status = Status()
        self.hold = Hold(self.limit, self.path, self.status, lambda: self.now)

    def see(self, leases: dict[str, Lease]) -> int:
        """Return how many leases are acted on."""
        return len(self.hold.leases(leases, OWN.subnet.key))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def held(node: Node) -> int:
    found = node.status.get().held
    return 0 if found is None else len(found.leases)


def test_mass_deletion_is_told_once_with_the_way_out(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.see(PEERS)
    assert node.see(REST) == 21
    assert node.see(REST) == 21
    (record,) = caplog.records
    assert "20 peers vanished from the store within a second (10.244.10.0/24" in record.message
    assert "for 60 s: `overlayctl peers prune` lets them go now" in record.message
    assert held(node) == 20
    assert node.status.get().counters.mass_deletions == 1
    found = node.status.get().held
    assert found is not None
    assert found.seconds_left(130.0) == 30.0


def test_restart_during_the_hold_forgets_nothing_and_starts_no_new_delay(node: Node) -> None:
    node.see(PEERS)
    node.see(REST)
    node.now += 40
    node.start()
    assert node.see(REST) == 21
    assert held(node) == 20
    assert node.hold.due_at == 160.0
    node.now = 160.0
    assert node.see(REST) == 1
    assert not node.path.exists()


def test_peers_that_came_back_during_the_restart_are_no_longer_held(node: Node) -> None:
    node.see(PEERS)
    node.see(REST)
    node.start()
    assert node.see(PEERS) == 21
    assert held(node) == 0
    assert not node.path.exists()


def test_kept_peers_are_kept_over_a_restart(node: Node) -> None:
    node.see(PEERS)
    node.see(REST)
    assert node.hold.answer(let_go=False) == 20
    node.start()
    node.now = 1e6
    assert node.see(REST) == 21
    assert node.hold.due_at == FOR_EVER
    found = node.status.get().held
    assert found is not None
    assert found.seconds_left(node.now) is None


def test_operator_lets_them_go(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.see(PEERS)
    node.see(REST)
    assert node.hold.answer(let_go=True) == 20
    assert node.see(REST) == 1
    assert held(node) == 0
    assert "20 peers that vanished are let go: an operator says so" in caplog.text
    with pytest.raises(NothingHeldError):
        node.hold.answer(let_go=True)


def test_expiry_is_one_line(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.see(PEERS)
    node.see(REST)
    caplog.clear()
    node.now += 60
    assert node.see(REST) == 1
    assert node.see(REST) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "20 peers that vanished did not come back in time and are let go" in record.message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="cut off"),
        pytest.param("[]", id="a list"),
        pytest.param('{"boot_id": 1}', id="another boot"),
        pytest.param('{"boot_id": "BOOT", "held": [{"key": "x"}]}', id="half of it"),
        pytest.param('{"boot_id": "BOOT", "held": [{"key": "x", "value": "{}", '
                     '"create_revision": 1, "mod_revision": 1, "lease_id": 1, "at": 1, '
                     '"until": 2}]}', id="no lease"),
        pytest.param('{"boot_id": "BOOT", "held": 7}', id="a number"),
        pytest.param("\x00\xff", id="rubbish"),
    ],
)  # fmt: skip
def test_file_that_cannot_be_read_holds_nothing(text: str, tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (tmp_path / "held-peers.json").write_bytes(text.replace("BOOT", boot).encode("latin-1"))
    node = Node(tmp_path)
    assert node.see(REST) == 1


@pytest.mark.parametrize(
    ("change", "seen", "said"),
    [
        pytest.param({"format": None}, 21, "still held", id="from before there were numbers"),
        pytest.param({"format": 2, "since": "x"}, 1, "format 2 is of another version", id="newer"),
    ],
)
def test_file_of_another_version_is_read_by_its_number(
    node: Node, caplog: pytest.LogCaptureFixture, change: dict[str, Any], seen: int, said: str
) -> None:
    node.see(PEERS)
    node.see(REST)
    document = json.loads(node.path.read_text()) | change
    node.path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    node.start()
    assert node.see(REST) == seen
    assert said in caplog.text


def test_file_of_another_boot_holds_nothing(node: Node) -> None:
    node.see(PEERS)
    node.see(REST)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    node.path.write_text(node.path.read_text().replace(boot, "0" * len(boot)))
    node.start()
    assert node.see(REST) == 1


def test_full_disk_is_told_and_the_hold_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("in the way")
    node.see(PEERS)
    assert node.see(REST) == 21
    assert "a restart would forget held peers" in caplog.text


def test_off_is_off(tmp_path: Path) -> None:
    node = Node(tmp_path, parse_limit("off"))
    node.see(PEERS)
    assert node.see(REST) == 1
