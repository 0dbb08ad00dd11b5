"""Who changed the table of policies: we, or somebody else, while others write rules of theirs."""

from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import pytest

from overlay.kernel.monitor import Monitor
from overlay.kernel.nft_generation import asked
from overlay.kernel.nft_policy import NftPolicyTable
from overlay.kernel.nft_socket import NftSocket
from overlay.kernel.notices import RulesetChange
from overlay.model.netpol import NetworkPolicy, World
from overlay.policy.network.compile import PolicyCompiler
from overlay.policy.network.links import PodLink, with_links
from overlay.policy.network.midway import guarded
from overlay.policy.network.table import POLICY_TABLE
from tests.kernel.netns import MakeNetns, Netns, eventually
from tests.kernel.test_policy_table import FROM_A_ON_80, OPTIONS, app, world

pytestmark = pytest.mark.kernel

FIRST = world(NetworkPolicy("x", "p", app("b"), ingress=(FROM_A_ON_80,)))
SECOND = world(NetworkPolicy("x", "p", app("c"), ingress=(FROM_A_ON_80,)))


@dataclass
class Watched:
    """A namespace, its table, and what the kernel tells of it."""

    netns: Netns
    table: NftPolicyTable
    monitor: Monitor
    compiler: PolicyCompiler

    def apply(self, wanted: World) -> None:
        links = [PodLink("opodb", (ip_address("10.244.1.2"),))]
        ruleset = guarded(with_links(self.compiler.update(wanted), links))
        assert self.netns.call(lambda: self.table.apply(ruleset))

    def foreign(self) -> list[RulesetChange]:
        """Return the changes of the table that are not our own."""
        found: list[RulesetChange] = []
        while notices := self.netns.call(partial(self.monitor.wait, 0.2)):
            found += [n for n in notices if isinstance(n, RulesetChange)]
        return [
            n for n in found if POLICY_TABLE in n.tables and not self.table.is_own(n.generation)
        ]

    def difference(self) -> str | None:
        return self.netns.call(self.table.difference)


@pytest.fixture
def watched(make_netns: MakeNetns) -> Watched:
    netns = make_netns()
    monitor = netns.call(Monitor)
    return Watched(netns, NftPolicyTable(), monitor, PolicyCompiler("n1", OPTIONS))


def test_rules_of_others_leave_the_table_and_its_counters_alone(watched: Watched) -> None:
    watched.apply(FIRST)
    handle = watched.netns.nft("-a", "list", "tables")
    for number in range(3):
        watched.netns.nft("add", "table", "inet", f"theirs{number}")
        watched.netns.nft("add", "table", "ip", "overlay_policy")  # of another family
        watched.apply(SECOND if number % 2 == 0 else FIRST)
        watched.netns.nft("add", "chain", "inet", f"theirs{number}", "overlay_policy")
    assert watched.foreign() == []
    assert watched.difference() is None
    mine = [line for line in handle.splitlines() if POLICY_TABLE in line]
    assert set(mine) <= set(watched.netns.nft("-a", "list", "tables").splitlines())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("add element T ov_self4 { 10.0.0.1 . 10.0.0.2 }", "set ov_self4"),
        ("delete element T ov_to4 { 10.244.1.2 }", "map ov_to4"),
        ("insert rule T ov_forward accept", "chain ov_forward"),
        ("add chain T theirs", "chain theirs"),
        ("flush table T", "chain ov_"),
        ("delete table T", "the table inet overlay_policy"),
    ],
)
def test_who_touches_the_table_is_told_of(watched: Watched, change: str, part: str) -> None:
    watched.apply(FIRST)
    assert watched.difference() is None
    watched.netns.nft("-f", "-", stdin=change.replace("T", POLICY_TABLE))
    (told,) = watched.foreign()
    assert told.by.startswith("nft (pid ")
    assert (watched.difference() or "").startswith(part)
    watched.table.forget()
    watched.apply(FIRST)
    assert watched.foreign() == []
    assert watched.difference() is None


def test_foreign_write_between_two_looks_at_the_generation_is_told_from_ours(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after ours, within what ``apply`` takes for its own time."""
    looks: list[int] = []

    def disturbed(channel: NftSocket) -> int:
        looks.append(1)
        if len(looks) == 2:
            watched.netns.nft("add", "chain", *POLICY_TABLE.split(), "theirs")
        return asked(channel)

    monkeypatch.setattr("overlay.kernel.nft_generation.asked", disturbed)
    watched.apply(FIRST)
    assert len(watched.foreign()) == 1
    eventually(lambda: watched.difference() == "chain theirs")
