"""Without a policy, pods that come and go ask nothing of the thread that enforces policies."""

import threading
from pathlib import Path
from typing import Final

from overlay.agent.attachments import Attachments
from overlay.agent.policy_enforcer import PolicyEnforcer, PolicyOptions
from overlay.agent.status import Status
from overlay.ipam.pool import Demand
from overlay.model.address import IPAddress
from overlay.model.attachment import Attachment, AttachmentKey
from overlay.model.lease import LeaseView
from overlay.model.netpol import NetworkPolicy, Selector
from overlay.model.policy_view import PolicyView
from overlay.model.subnet import parse_subnet
from overlay.policy.network.table import PolicyRuleset
from tests.kernel.netns import eventually
from tests.unit.worlds import by_key, lease

SUBNET = parse_subnet("10.244.1.0/24")
DENY: Final = NetworkPolicy("default", "deny", Selector(()), ingress=())


class Counted(Attachments):
    """Attachments that count how often all are looked at."""

    looks = 0

    def list(self, network: str | None = None) -> list[Attachment]:
        self.looks += 1
        return super().list(network)


class Table:
    """A table in memory."""

    def __init__(self) -> None:
        self.held: PolicyRuleset | None = None

    def apply(self, ruleset: PolicyRuleset) -> bool:
        self.held = ruleset
        return True

    def is_own(self, number: int) -> bool:
        return number > 0

    def forget(self) -> None:
        return


def add(attachments: Attachments, name: str) -> Attachment:
    key = AttachmentKey("net", name, "eth0")

    def make(addresses: tuple[IPAddress, ...]) -> Attachment:
        return Attachment(key, "/run/netns/x", addresses, "opod1")

    return attachments.add(SUBNET, Demand(), key, make)


def test_pods_are_looked_at_once_there_is_a_policy(tmp_path: Path) -> None:
    attachments, status, table = Counted(tmp_path), Status(), Table()
    enforcer = PolicyEnforcer("n1", attachments, status, table, PolicyOptions())

    def is_seen(revision: int) -> bool:
        state = status.get().policy
        return state is not None and state.revision == revision

    stop = threading.Event()
    thread = threading.Thread(target=enforcer.run, args=(stop,))
    thread.start()
    try:
        enforcer.follow(LeaseView(1, by_key(lease(2))))
        enforcer.put(PolicyView(1))
        eventually(lambda: is_seen(1), timeout_s=20)
        assert not enforcer.world.nodes, "nobody asks for them"
        for number in range(50):
            enforcer.admit(add(attachments, f"pod{number}"))
            enforcer.wake()
        enforcer.put(PolicyView(2))
        eventually(lambda: is_seen(2), timeout_s=20)
        assert attachments.looks == 2, "one for each view"
        enforcer.put(PolicyView(3, policies={DENY.key: DENY}))
        eventually(lambda: is_seen(3), timeout_s=20)
        assert len(enforcer.world.pods) == 50
        assert set(enforcer.world.nodes) == {lease(2).node}
        assert table.held is not None
        assert table.held.maps["ov_to4"].elements
        enforcer.admit(add(attachments, "late"))
        assert len(enforcer.world.pods) == 51, "it waited for its rules"
    finally:
        stop.set()
        enforcer.wake()
        enforcer.doubt(())
        thread.join(20)
    assert not thread.is_alive()
