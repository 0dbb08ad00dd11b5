"""The table in the kernel: whole, by elements, and what others do to it."""

import shutil
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest

from overlay.kernel.nft import NftError
from overlay.kernel.nft_elements import ElementsRefusedError, change_elements
from overlay.kernel.nft_generation import OwnWrites
from overlay.kernel.nft_ports import PortTable
from overlay.kernel.nft_socket import NftSocket
from overlay.kernel.nft_table import NftTable
from overlay.model.address import Family, MacAddress
from overlay.policy.ports import Port
from overlay.policy.ruleset import TABLE, NamedSet, Ruleset, hosts, intervals
from tests.kernel.netns import Netns

pytestmark = pytest.mark.kernel

CHAINS = """\
	chain ov_input {
		type filter hook input priority filter - 10; policy accept;
		ip saddr @ov_nodes4 counter accept comment "a peer"
		udp dport 8472 counter drop
	}
"""


def ruleset(*nodes: str, chains: str = CHAINS) -> Ruleset:
    nets4 = [IPv4Network("10.0.0.0/8"), IPv4Network("10.1.0.0/16"), IPv4Network("192.0.2.1/32")]
    return Ruleset(
        (
            NamedSet("ov_nodes4", Family.IPV4, hosts(map(ip_address, nodes), Family.IPV4)),
            NamedSet("ov_nodes6", Family.IPV6, hosts(map(ip_address, nodes), Family.IPV6)),
            NamedSet("ov_keep4", Family.IPV4, intervals(nets4, Family.IPV4), interval=True),
            NamedSet(
                "ov_keep6",
                Family.IPV6,
                intervals([IPv6Network("::/0")], Family.IPV6),
                interval=True,
            ),
        ),
        chains,
    )


def many(first: int, count: int) -> list[str]:
    return [str(IPv4Address("172.16.0.0") + first + n) for n in range(count)]


def listed(netns: Netns) -> str:
    return netns.nft("list", "ruleset")


def test_whole_table_is_replaced_and_known_as_ours(netns: Netns) -> None:
    table = NftTable()

    def body() -> None:
        assert not table.is_ours(ruleset("192.0.2.2"))
        for peers in (["192.0.2.2"], ["192.0.2.3", "2001:db8::1"], many(0, 3000)):
            table.apply(ruleset(*peers))
            assert table.is_ours(ruleset(*peers))
            assert not table.is_ours(ruleset())

    netns.call(body)
    assert "172.16.11.183" in listed(netns)
    assert "192.0.2.3" not in listed(netns)


class Disturbed(NftTable):
    """A table that somebody tampers with whenever it was written, until they stop."""

    meddler: Netns | None = None
    looks = 0

    def _list(self) -> str | None:
        self.looks += 1
        if self.meddler is not None:
            self.meddler.nft("insert", "rule", *TABLE.split(), "ov_input", "counter", "accept")
        return super()._list()


def test_table_that_others_change_while_it_is_written_is_never_taken_for_ours(netns: Netns) -> None:
    wanted, table = ruleset("192.0.2.2"), Disturbed()
    table.meddler = netns
    netns.call(lambda: table.apply(wanted))
    assert table.looks == 3
    assert not table.is_remembered
    assert not netns.call(lambda: table.is_ours(wanted))
    table.meddler = None
    netns.call(lambda: table.apply(wanted))
    assert netns.call(lambda: table.is_ours(wanted))
    assert "counter packets 0 bytes 0 accept\n" not in listed(netns)


def test_table_that_was_listed_once_is_repaired_without_being_listed(netns: Netns) -> None:
    wanted, table = ruleset("192.0.2.2"), Disturbed()
    netns.call(lambda: table.apply(wanted))
    netns.nft("flush", "chain", *TABLE.split(), "ov_input")
    theirs = netns.call(OwnWrites().generation)
    assert not table.is_undone(theirs)
    looks = table.looks
    netns.call(lambda: table.apply(wanted))
    assert table.looks == looks
    assert table.is_undone(theirs)
    table._generation = None  # so that it is listed and compared
    assert netns.call(lambda: table.is_ours(wanted))


def test_own_transactions_are_told_from_those_of_others(netns: Netns) -> None:
    table, old, new = NftTable(), ruleset("192.0.2.2"), ruleset("192.0.2.3")
    told: list[int] = []
    for write in (lambda: table.apply(old), lambda: table.apply_delta(old, new)):
        netns.call(write)
        told.append(netns.call(OwnWrites().generation))
    netns.nft("flush", "set", *TABLE.split(), "ov_nodes4")
    theirs = netns.call(OwnWrites().generation)
    assert table.foreign([*told, theirs]) == (theirs,)


def test_delta_changes_one_element_and_lets_counters_run(netns: Netns) -> None:
    netns.ip("addr", "add", "192.0.2.2/32", "dev", "lo")
    table, old = NftTable(), ruleset("192.0.2.2", "2001:db8::1")
    new = ruleset("192.0.2.2", "192.0.2.3")
    netns.call(lambda: table.apply(old))
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("192.0.2.2", 9))
    before = _counter(netns)
    assert before != "packets 0 bytes 0"
    netns.call(lambda: table.apply_delta(old, new))
    assert _counter(netns) == before
    assert "elements = { 192.0.2.2, 192.0.2.3 }" in listed(netns)
    assert "2001:db8::1" not in listed(netns)
    assert netns.call(lambda: table.is_ours(new))
    assert not netns.call(lambda: table.is_ours(old))


def _counter(netns: Netns) -> str:
    (line,) = [line for line in listed(netns).splitlines() if "a peer" in line]
    return line.split("counter ")[1].split(" accept")[0]


def test_many_elements_come_and_go_in_one_delta(netns: Netns) -> None:
    table, old, new = NftTable(), ruleset(*many(0, 2000)), ruleset(*many(1000, 2000))
    netns.call(lambda: table.apply(old))
    netns.call(lambda: table.apply_delta(old, new))
    assert netns.call(lambda: table.is_ours(new))
    table._generation = None  # so that the table is listed and compared
    assert netns.call(lambda: table.is_ours(new))


def test_elements_are_changed_without_executing_nft(
    netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, old = NftTable(), ruleset("192.0.2.2", "2001:db8::1")
    new = ruleset("192.0.2.3", "2001:db8::2", "2001:db8::3")
    netns.call(lambda: table.apply(old))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        netns.call(lambda: table.apply_delta(old, new))
    table._generation = None  # so that the table is listed and compared
    assert netns.call(lambda: table.is_ours(new))


def test_elements_are_left_alone_where_somebody_wrote_meanwhile(netns: Netns) -> None:
    table, old, new = NftTable(), ruleset("192.0.2.2"), ruleset("192.0.2.3")
    netns.call(lambda: table.apply(old))
    changes = new.changes(old)
    assert changes
    seen = netns.call(OwnWrites().generation)
    netns.nft("add", "table", "inet", "other")
    with pytest.raises(ElementsRefusedError):
        netns.call(lambda: change_elements(TABLE, changes, seen, NftSocket()))
    assert "192.0.2.2" in listed(netns)
    assert "192.0.2.3" not in listed(netns)


def test_refused_change_spoils_no_later_answer(netns: Netns) -> None:
    """Of several errors that the kernel answers the first one is read."""
    own, old = OwnWrites(), ruleset("192.0.2.2", "2001:db8::2")
    table = NftTable(own=own)
    netns.call(lambda: table.apply(old))
    changes = ruleset().changes(ruleset("192.0.2.9", "2001:db8::9"))  # neither is there
    assert changes
    assert len(changes) == 2
    seen = netns.call(own.generation)
    with pytest.raises(ElementsRefusedError):
        netns.call(lambda: change_elements(TABLE, changes, seen, own.channel))
    assert netns.call(own.generation) == netns.call(OwnWrites().generation)
    new = ruleset("192.0.2.3")
    netns.call(lambda: table.apply_delta(old, new))
    assert netns.call(lambda: table.is_ours(new))


def test_elements_are_changed_all_or_none(netns: Netns) -> None:
    table, old = NftTable(), ruleset("192.0.2.2")
    netns.call(lambda: table.apply(old))
    changes = ruleset("192.0.2.3").changes(ruleset("192.0.2.9"))  # .9 is not there
    assert changes
    seen = netns.call(OwnWrites().generation)
    with pytest.raises(ElementsRefusedError, match="No such file or directory"):
        netns.call(lambda: change_elements(TABLE, changes, seen, NftSocket()))
    assert "192.0.2.3" not in listed(netns)
    assert netns.call(OwnWrites().generation) == seen


def test_delta_falls_back_to_the_whole_table(netns: Netns) -> None:
    table, old = NftTable(), ruleset("192.0.2.2")
    other = ruleset("192.0.2.2", chains=CHAINS.replace("8472", "4789"))
    netns.call(lambda: table.apply(old))
    netns.call(lambda: table.apply_delta(old, other))
    assert netns.call(lambda: table.is_ours(other))
    assert "4789" in listed(netns)


def test_delta_against_a_flushed_table_is_an_error_that_says_so(netns: Netns) -> None:
    table, old, new = NftTable(), ruleset("192.0.2.2"), ruleset("192.0.2.2", "192.0.2.3")
    netns.call(lambda: table.apply(old))
    netns.nft("flush", "ruleset")
    with pytest.raises(NftError, match="No such file or directory"):
        netns.call(lambda: table.apply_delta(old, new))
    netns.call(lambda: table.apply(new))
    assert netns.call(lambda: table.is_ours(new))


def test_bad_ruleset_leaves_the_old_one(netns: Netns) -> None:
    table, good = NftTable(), ruleset("192.0.2.2")
    bad = ruleset("192.0.2.3", chains=CHAINS.replace("@ov_nodes4", "@ov_none"))
    netns.call(lambda: table.apply(good))
    before = listed(netns)
    with pytest.raises(NftError) as caught:
        netns.call(lambda: table.apply(bad))
    assert listed(netns) == before
    assert netns.call(lambda: table.is_ours(good))
    assert (
        caught.value.line
        == bad.transaction.splitlines().index(
            '\t\tip saddr @ov_none counter accept comment "a peer"'
        )
        + 1
    )
    assert "@ov_none" in caught.value.source
    assert str(caught.value).startswith("nftables: Error: No such file or directory")


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        pytest.param("add table ip x", True, id="another table"),
        pytest.param("add rule inet overlay ov_input drop", False, id="a rule in ours"),
        pytest.param("flush chain inet overlay ov_input", False, id="our chain flushed"),
        pytest.param("add element inet overlay ov_nodes4 { 9.9.9.9 }", False, id="an element"),
        pytest.param("delete element inet overlay ov_nodes4 { 192.0.2.2 }", False, id="one less"),
        pytest.param("add set inet overlay y { type inet_service; }", False, id="a set"),
        pytest.param("flush ruleset", False, id="all flushed"),
        pytest.param("delete table inet overlay", False, id="our table deleted"),
    ],
)
def test_change_by_somebody_else_is_seen(netns: Netns, foreign: str, *, ours: bool) -> None:
    table, mine = NftTable(), ruleset("192.0.2.2", "192.0.2.3", "2001:db8::1")
    netns.call(lambda: table.apply(mine))
    before = netns.call(OwnWrites().generation)
    netns.nft(foreign)
    assert netns.call(OwnWrites().generation) == before + 1
    assert netns.call(lambda: table.is_ours(mine)) is ours
    netns.call(lambda: table.apply(mine))
    assert netns.call(lambda: table.is_ours(mine))


def test_delta_after_a_foreign_change_does_not_hide_it(netns: Netns) -> None:
    table, old, new = NftTable(), ruleset("192.0.2.2"), ruleset("192.0.2.3")
    netns.call(lambda: table.apply(old))
    netns.nft("flush", "chain", "inet", "overlay", "ov_input")
    netns.call(lambda: table.apply_delta(old, new))
    assert not netns.call(lambda: table.is_ours(new))


def test_writes_of_another_table_of_ours_make_nobody_list(
    netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnWrites()
    table, other, mine = NftTable(own=own), PortTable(own=own), ruleset("192.0.2.2")
    netns.call(lambda: table.apply(mine))
    netns.call(lambda: other.hold([]))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")  # to list the table fails now
        assert netns.call(lambda: table.is_ours(mine))
    netns.nft("flush", "chain", "inet", "overlay", "ov_input")
    netns.call(lambda: other.hold([Port("opod1", MacAddress("02:00:00:00:00:01"), ())]))
    assert not netns.call(lambda: table.is_ours(mine))


def test_delete_removes_our_table_alone(netns: Netns) -> None:
    table = NftTable()
    netns.nft("add", "table", "inet", "other")
    netns.call(lambda: table.apply(ruleset()))
    for _ in range(2):
        netns.call(table.delete)
        assert netns.nft("list", "tables").split("\n") == ["table inet other", ""]


def test_missing_nft_names_the_package(
    netns: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NftError, match="Debian package nftables"):
        netns.call(lambda: NftTable().apply(ruleset()))


def test_nft_that_hangs_is_ended(
    netns: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = shutil.which("sleep")
    fake = tmp_path / "nft"
    fake.write_text(f"#!/bin/sh\nexec {sleep} 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    with pytest.raises(NftError, match=r"did not end within 0\.2 s"):
        netns.call(lambda: NftTable(timeout_s=0.2).apply(ruleset()))


def test_generation_survives_a_refused_transaction(netns: Netns) -> None:
    before = netns.call(OwnWrites().generation)
    netns.nft("delete", "table", "inet", "none", check=False)
    assert netns.call(OwnWrites().generation) == before
