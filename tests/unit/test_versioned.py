"""Maps and sets that share what did not change, beside plain dictionaries and sets."""

import threading
from collections.abc import Hashable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.model.hamt import Node, leaf_of, leaves, made_of, with_item, without
from overlay.model.versioned import MapHistory, SetHistory, changed_keys, differing_members


class Clash:
    """A key of which many have one hash, or one that differs in its last bits alone."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __hash__(self) -> int:
        return -1 << 62 if self.name % 3 else self.name << 58

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clash) and other.name == self.name

    def __repr__(self) -> str:
        return f"Clash({self.name})"


keys = st.one_of(st.integers(-40, 40), st.text(max_size=2), st.integers(0, 60).map(Clash))
changes = st.lists(st.tuples(keys, st.one_of(st.none(), st.integers(0, 2))), max_size=90)


def held(node: Node) -> dict[Hashable, object]:
    return {key: value for leaf in leaves(node) for key, value in leaf.items()}


@settings(max_examples=200)
@given(changes, changes)
def test_map_is_what_a_dictionary_would_be(
    first: list[tuple[Hashable, int | None]], then: list[tuple[Hashable, int | None]]
) -> None:
    expected = dict(first)
    node = start = made_of(dict(expected))
    for key, value in then:
        if value is None:
            node = without(node, key)
            expected.pop(key, None)
        else:
            node = with_item(node, key, value)
            expected[key] = value
        assert leaf_of(node, key).get(key) == value
    assert held(node) == expected
    assert held(start) == dict(first), "what there was before is as it was"
    assert all(leaf_of(node, key)[key] == value for key, value in expected.items())


def test_a_change_makes_few_nodes_whatever_the_size() -> None:
    made = []
    for size in (1_000, 100_000):
        node = made_of({str(number): number for number in range(size)})
        other = with_item(node, "new", 1)
        known = {id(leaf) for leaf in leaves(node)}
        made.append(sum(len(leaf) for leaf in leaves(other) if id(leaf) not in known))
    assert max(made) <= 33


steps = st.lists(changes, max_size=6)


@given(steps)
def test_snapshots_stay_and_know_what_lies_between_them(
    rounds: list[list[tuple[Hashable, int | None]]],
) -> None:
    history: MapHistory[Hashable, int] = MapHistory()
    expected: dict[Hashable, int] = {}
    taken = [(history.snapshot(), dict(expected))]
    for each in rounds:
        for key, value in each:
            if value is None:
                history.discard(key)
                expected.pop(key, None)
            else:
                history.put(key, value)
                expected[key] = value
        taken.append((history.snapshot(), dict(expected)))
    for (before, then), (after, now) in pairwise(taken):
        assert (after is before) == (now == then), "the same object while nothing changes"
    for number, (before, then) in enumerate(taken):
        assert (dict(before), len(before)) == (then, len(then))
        assert dict(before.items()) == then
        assert sorted(before.values()) == sorted(then.values())
        for after, now in taken[number:]:
            differing = {key for key in {*then, *now} if then.get(key) != now.get(key)}
            assert differing <= set(changed_keys(before, after))


@given(st.lists(st.lists(st.tuples(keys, st.booleans()), max_size=50), max_size=5))
def test_sets_tell_who_came_and_who_went(rounds: list[list[tuple[Hashable, bool]]]) -> None:
    history: SetHistory[Hashable] = SetHistory()
    expected: set[Hashable] = set()
    before, then = history.snapshot(), frozenset(expected)
    for each in rounds:
        for key, is_in in each:
            if is_in:
                history.add(key)
                expected.add(key)
            else:
                history.discard(key)
                expected.discard(key)
        after, now = history.snapshot(), frozenset(expected)
        assert frozenset(after) == now
        assert len(after) == len(now)
        assert differing_members(before, after) == (now - then, then - now)
        assert differing_members(then, after) == (now - then, then - now)
        assert (after is before) == (now == then)
        before, then = after, now


def test_snapshots_are_read_while_the_writer_goes_on() -> None:
    history = MapHistory({str(number): number for number in range(2_000)})
    first = history.snapshot()
    seen: list[tuple[int, int]] = []

    def read() -> None:
        seen.extend((sum(first.values()), len(list(first))) for _ in range(20))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(2_000):
        history.discard(str(number))
        history.put(f"new {number}", number)
        last = history.snapshot()
    for reader in readers:
        reader.join()
    assert set(seen) == {(1_999_000, 2_000)}
    assert len(last) == 2_000
    assert not first.keys() & last.keys()


def test_histories_have_nothing_in_common() -> None:
    one, other = MapHistory({"a": 1}), MapHistory({"a": 1})
    assert other.snapshot().changed_since(one.snapshot()) is None
    assert other.snapshot().changed_since({}) is None
    with pytest.raises(KeyError):
        one.snapshot()["b"]
