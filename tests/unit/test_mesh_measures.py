"""Which peers are measured, what is kept of it, and how a path MTU is searched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.mesh.path_mtu import PathMtu, Search
from overlay.mesh.record import Histogram, Record
from overlay.mesh.sample import sample
from overlay.mesh.seal import node_tag
from overlay.mesh.told import Told
from overlay.mesh.wire import Row

TAGS = [node_tag(f"n{number}") for number in range(1000)]


def test_all_peers_are_measured_where_they_are_few() -> None:
    assert sample(TAGS[0], TAGS[1:101], 5) == sorted(TAGS[1:101])


def test_sample_is_bounded_stable_and_drawn_anew() -> None:
    first = sample(TAGS[0], TAGS[1:], 0)
    assert len(first) == 100
    assert sample(TAGS[0], TAGS[1:][::-1], 0) == first
    assert sample(TAGS[0], TAGS[1:], 1) != first
    assert sample(TAGS[1], TAGS[2:], 0) != first
    gone = first[0]
    left = sample(TAGS[0], [tag for tag in TAGS[1:] if tag != gone], 0)
    assert len(set(first) - set(left)) == 1


def test_everybody_is_in_somebodys_sample() -> None:
    seen = {tag for own in TAGS[:60] for tag in sample(own, [t for t in TAGS if t != own], 0)}
    assert len(seen) > 990


def test_record_of_answers_and_losses() -> None:
    assert Record().loss is None
    record = Record()
    for rtt_s in (0.004, 0.002, 0.002):
        record.answered(rtt_s)
    record.missed()
    assert (record.sent, record.lost, record.loss) == (4, 1, 0.25)
    assert (record.least_s, record.last_s) == (0.002, 0.002)
    assert record.average_s is not None
    assert 0.002 < record.average_s < 0.004


def test_three_misses_in_a_row_are_silence_until_the_next_answer() -> None:
    record, steps = Record(), ("", "answer", "miss", "miss", "miss", "answer")
    heard = [record_is_silent(record, step) for step in steps]
    assert heard == [False, False, False, False, True, False]
    fresh = Record()
    assert [record_is_silent(fresh, "miss") for _ in range(3)] == [False, False, True]


def record_is_silent(record: Record, step: str) -> bool:
    if step == "answer":
        record.answered(0.002)
    elif step:
        record.missed()
    return record.is_silent


def test_losses_are_forgotten_after_sixty_probes() -> None:
    record = Record()
    record.missed()
    for _ in range(60):
        record.answered(0.001)
    assert (record.loss, record.lost) == (0.0, 1)


def test_histogram_counts_what_is_no_longer_than_a_bound() -> None:
    histogram = Histogram()
    for rtt_s in (0.0001, 0.00011, 7):
        histogram.add(rtt_s)
    rows = dict(histogram.cumulative())
    assert (rows["0.0001"], rows["0.00025"], rows["2.5"], rows["+Inf"]) == (1, 2, 2, 3)
    assert histogram.sum_s == pytest.approx(7.00021)


def found(search: Search, limit: int, *, lost: int = 0) -> tuple[int | None, int]:
    """Search a path of ``limit`` bytes that also loses the first ``lost`` datagrams."""
    rounds = 0
    while not search.is_done:
        rounds += 1
        assert rounds < 20
        for size in search.sizes():
            if size <= limit and lost <= 0:
                search.heard(size)
            lost -= 1
        search.waited()
    return search.result, rounds


@given(st.integers(576, 9000), st.integers(576, 9000))
def test_search_finds_any_limit(ceiling: int, limit: int) -> None:
    result, rounds = found(Search(576, ceiling), limit)
    assert result == min(ceiling, limit)
    assert rounds <= 10


def test_path_without_trouble_takes_one_round() -> None:
    assert found(Search(576, 1500), 1500) == (1500, 1)


def test_path_that_carries_nothing_has_no_answer() -> None:
    assert found(Search(576, 1500), 0) == (None, 2)


def test_one_lost_round_is_no_small_path() -> None:
    assert found(Search(576, 1500), 1500, lost=2) == (1500, 2)


def test_least_of_both_directions() -> None:
    assert PathMtu(1500, 1400).least == 1400
    assert PathMtu(1500, None).least is None


def shown(told: Told) -> list[tuple[int, int, float | None]]:
    numbers = {tag: number for number, tag in enumerate(TAGS)}
    return [(numbers[sender], numbers[row.tag], row.overlay_s) for sender, row in told.rows()]


def test_what_was_not_told_again_is_forgotten() -> None:
    told = Told()
    told.hear(TAGS[1], [Row(TAGS[2], 0.001), Row(TAGS[3], 0.001)], 10.0)
    told.hear(TAGS[1], [Row(TAGS[2], 0.002)], 15.0)
    told.hear(TAGS[4], [Row(TAGS[2], 0.003)], 10.0)
    told.forget(12.0)
    assert shown(told) == [(1, 2, 0.002)]
    told.forget(15.5)
    assert shown(told) == []


def test_what_is_told_is_bounded_by_who_is_measured() -> None:
    told = Told()
    for sender in TAGS[:200]:
        told.hear(sender, [Row(tag) for tag in TAGS], 1.0)
    told.keep(TAGS[:100])
    rows = shown(told)
    assert len(rows) == 100 * 100
    assert {target for _, target, _ in rows} == set(range(900, 1000)), "the newest ones stay"
