"""The fault suite's own judgement: what leases must come to, what a row says, where it goes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from overlay.lab.chaos import __main__ as suite
from overlay.lab.chaos import peers, runner, table
from overlay.lab.chaos.fault import Fault, Planted, Round, Row
from overlay.lab.chaos.picture import LINKS, difference
from overlay.lab.chaos.stream import Losses
from overlay.lab.document import write_between
from overlay.lab.errors import LabUsageError
from overlay.model.lease import parse_attributes


def never(_: object) -> Planted:
    raise AssertionError


FAULT = Fault("route deleted", "drift", never, "never repaired", is_lossless=True)


def test_fake_lease_is_one_that_the_product_reads() -> None:
    attributes = parse_attributes("10.244.0.32-27", peers.fake_lease(3))
    assert attributes.backend_type == "vxlan"
    assert attributes.owner is None


def test_expected_entries_are_those_of_the_others() -> None:
    leases = {"10.244.0.32-27": peers.fake_lease(1), "10.244.0.64-27": peers.fake_lease(2)}
    entries = peers.expected(leases, "10.244.0.32-27")
    assert entries.routes == {("10.244.0.64/27", "10.244.0.64"), ("172.16.0.12", "10.244.0.64")}
    assert entries.neighbors == {("10.244.0.64", "02:f1:00:00:00:02")}
    assert entries.forwarding == {("02:f1:00:00:00:02", "172.16.0.12")}


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"PublicIP":"192.0.2.1"}', b"\xff"])
def test_unreadable_lease_asks_for_nothing(value: bytes) -> None:
    assert not peers.expected({"10.244.0.64-27": value}, "own").routes


def test_difference_names_what_lacks_and_what_is_too_much() -> None:
    moved = peers.with_mac(peers.fake_lease(1), 9)
    one = peers.expected({"10.244.0.64-27": peers.fake_lease(1)}, "own")
    other = peers.expected({"10.244.0.64-27": moved}, "own")
    assert one.difference(one) == ""
    assert "-neighbor 10.244.0.64 02:f1:00:00:00:01" in one.difference(other)
    assert "+neighbor 10.244.0.64 02:f1:00:00:00:09" in one.difference(other)
    assert difference({LINKS: "a\nb"}, {LINKS: "b\nc"}) == ["- a", "+ c"]


def test_free_keys_leave_out_what_is_taken_and_the_first_subnet() -> None:
    keys = peers.free_keys("10.244.0.0/25", 27, ["10.244.0.64-27"])
    assert keys == ["10.244.0.96-27", "10.244.0.32-27"]


@pytest.mark.parametrize(
    ("rounds", "shown", "is_kept"),
    [
        ([Round(0.02, 0), Round(0.03, 0)], ("25", "30", "0", ""), True),
        ([Round(0.02, 0), Round(1.5, 0)], ("760", "1500", "0", "target 1000 ms"), True),
        ([Round(0.02, 0), Round(0.02, 7)], ("20", "20", "7", "none may be lost"), False),
        ([Round(0.02, 0), Round(None, 0, "why")], ("never", "never", "0", "why"), False),
    ],
)
def test_row_says_how_it_went(rounds: list[Round], shown: tuple[str, ...], is_kept: bool) -> None:
    row = Row(FAULT, tuple(rounds))
    _, median, worst, _, lost, _, remarks = table.cells(row)
    assert (median, worst, lost, remarks) == shown
    assert row.is_kept is is_kept
    assert json.loads(json.dumps(row.to_json()))["kept"] is is_kept


@pytest.mark.parametrize(
    ("median_target_s", "seconds", "is_in_time"),
    [
        (None, (0.2, 0.9), True),
        (None, (0.2, 1.1), False),
        (0.05, (0.03, 0.04, 0.9), True),
        (0.05, (0.03, 0.06, 0.9), False),
        (0.05, (0.03, None), False),
    ],
)
def test_row_is_in_time_by_its_worst_and_by_its_median(
    median_target_s: float | None, seconds: Sequence[float | None], is_in_time: bool
) -> None:
    fault = replace(FAULT, median_target_s=median_target_s)
    row = Row(fault, tuple(Round(each, 0) for each in seconds))
    assert row.is_in_time is is_in_time
    assert ("target" in table.cells(row)[-1]) is (not is_in_time and None not in seconds)


@pytest.mark.parametrize(
    ("losses", "note"),
    [
        (Losses(), ""),
        (Losses(12), ""),
        (Losses(0, 0, 99), ""),
        (Losses(0, 5, 99), "5 more by the stream's own sockets"),
        (Losses(12, 0, 99), "the machine's queues dropped 99 of anybody's"),
    ],
)
def test_losses_of_the_machine_are_told_from_those_of_the_fabric(losses: Losses, note: str) -> None:
    assert losses.note == note


def test_table_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "doc.md"
    file.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    write_between(file, table.BEGIN, table.END, table.document([Row(FAULT, (Round(0.02, 0),))]))
    text = file.read_text()
    assert "| route deleted | 20 | 20 | fault | 0 | never repaired |  |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")


def test_document_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "doc.md"
    file.write_text("no marks\n")
    with pytest.raises(LabUsageError, match="chaos: begin"):
        write_between(file, table.BEGIN, table.END, "x")
    assert file.read_text() == "no marks\n"


def test_faults_are_chosen_by_group_and_by_part_of_a_name() -> None:
    everything = [fault.name for fault in runner.all_faults()]
    assert len(set(everything)) == len(everything)
    assert [fault.name for fault in suite.chosen([])] == everything
    assert {fault.group for fault in suite.chosen(["lease"])} == {"lease"}
    assert [fault.name for fault in suite.chosen(["half-open"])] == ["half-open connections"]
    with pytest.raises(LabUsageError, match="--list"):
        suite.chosen(["no such thing"])
