"""Mass deletions: what is held, what never is, and for how long; tables and properties."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.model.lease import Lease
from overlay.plan.prune import (
    AT_LEAST,
    FOR_EVER,
    WINDOW_S,
    Acting,
    Prune,
    PruneLimit,
    parse_limit,
)
from tests.unit.worlds import by_key, lease, subnet

HALF = PruneLimit()
OWN = lease(1)
PEERS = by_key(OWN, *(lease(i) for i in range(2, 42)))  # 40 peers


def seen(leases: Mapping[str, Lease], limit: PruneLimit = HALF) -> Prune:
    return Prune().after(leases, OWN.subnet.key, 0.0, limit)


def without(numbers: range, leases: Mapping[str, Lease] = PEERS) -> dict[str, Lease]:
    gone = {subnet(i).key for i in numbers}
    return {key: each for key, each in leases.items() if key not in gone}


def after(prune: Prune, view: Mapping[str, Lease], now: float, limit: PruneLimit = HALF) -> Prune:
    return prune.after(view, OWN.subnet.key, now, limit)


@pytest.mark.parametrize(
    ("limit", "gone", "is_held"),
    [
        pytest.param("50%", 1, False, id="one"),
        pytest.param("50%", 20, False, id="half is not more than half"),
        pytest.param("50%", 21, True, id="more than half"),
        pytest.param("50%", 40, True, id="all"),
        pytest.param("10%", 9, False, id="a share below ten peers"),
        pytest.param("10%", 10, True, id="a share from ten peers on"),
        pytest.param("3", 3, False, id="as many as the number"),
        pytest.param("3", 4, True, id="more than the number"),
        pytest.param("off", 40, False, id="off"),
        pytest.param("0", 40, False, id="zero is off"),
    ],
)
def test_what_a_limit_holds(limit: str, gone: int, is_held: bool) -> None:
    parsed = parse_limit(limit)
    rest = without(range(2, 2 + gone))
    prune = after(seen(PEERS, parsed), rest, 5.0, parsed)
    assert len(prune.held) == (gone if is_held else 0)
    assert prune.leases == (PEERS if is_held else rest)
    assert prune.due_at == (65.0 if is_held else FOR_EVER)


@pytest.mark.parametrize(
    "text", ["", "half", "-1", "1.5", "100%", "%", "50 %", "9" * 10, "12 peers"]
)
def test_limit_that_is_none_is_refused_with_what_may_be_written(text: str) -> None:
    with pytest.raises(ValueError, match="write a share of the peers"):
        parse_limit(text)


def test_deletions_that_come_singly_are_one_and_the_first_ones_come_back() -> None:
    prune, view = seen(PEERS), PEERS
    for i in range(2, 42):
        view = without(range(2, i + 1))
        prune = after(prune, view, 10 + i * 0.02)
    assert prune.leases == PEERS
    assert {each.until for each in prune.held.values()} == {prune.due_at}
    assert prune.due_at == pytest.approx(10 + 22 * 0.02 + 60), "from when the limit was passed"


def test_deletions_over_a_longer_time_are_many_single_ones() -> None:
    prune = seen(PEERS)
    for i in range(2, 42):
        view = without(range(2, i + 1))
        prune = after(prune, view, i * 0.2)
        assert prune.leases == view


def test_after_the_delay_it_is_carried_out_once() -> None:
    rest = without(range(2, 40))
    prune = after(seen(PEERS), rest, 5.0)
    assert after(prune, rest, 64.9).leases == PEERS
    done = after(prune, rest, 65.0)
    assert (done.leases, len(done.expired)) == (rest, 38)
    assert after(done, rest, 66.0).expired == ()


def test_what_comes_back_is_never_touched_and_the_rest_goes() -> None:
    prune = after(seen(PEERS), without(range(2, 42)), 5.0)
    back = without(range(2, 32))
    prune = after(prune, back, 30.0)
    assert prune.leases == PEERS
    assert len(prune.held) == 30
    assert after(prune, back, 65.0).leases == back


@pytest.mark.parametrize(
    "new",
    [
        pytest.param(lease(90, public=5), id="its address"),
        pytest.param(lease(90, macs="n5"), id="its VTEP"),
        pytest.param(lease(90, at=subnet(5)), id="its subnet"),
    ],
)
def test_held_lease_yields_at_once_to_whoever_takes_its_place(new: Lease) -> None:
    prune = after(seen(PEERS), {}, 5.0)
    assert subnet(5).key in prune.held
    prune = after(prune, by_key(new), 6.0)
    assert subnet(5).key not in prune.held
    assert prune.leases[new.subnet.key] is new
    assert len(prune.held) == 39


def test_node_that_claims_another_subnet_is_no_deletion() -> None:
    moved = by_key(OWN, *(lease(i, at=subnet(i + 100)) for i in range(2, 42)))
    prune = after(seen(PEERS), moved, 5.0)
    assert (prune.leases, prune.held) == (moved, {})


def test_own_lease_and_reservations_are_no_peers() -> None:
    kept = by_key(*(lease(i, backend="reservation") for i in range(2, 42)))
    prune = after(seen({**by_key(OWN), **kept}), {}, 5.0)
    assert (prune.leases, prune.held) == ({}, {})


def test_single_release_beside_a_hold_is_not_held() -> None:
    prune = after(seen(PEERS), without(range(2, 25)), 5.0)
    later = after(prune, without(range(2, 26)), 5.0 + WINDOW_S)
    assert len(later.held) == 23
    assert subnet(25).key not in later.leases


def test_second_mass_deletion_has_a_time_of_its_own() -> None:
    prune = after(seen(PEERS), without(range(2, 30)), 5.0)
    prune = after(prune, without(range(2, 42)), 30.0)
    assert len(prune.held) == 40
    prune = after(prune, without(range(2, 42)), 65.0)
    assert (len(prune.held), prune.due_at) == (12, 90.0)


def test_operator_says_yes_or_keep() -> None:
    rest = without(range(2, 42))
    prune = after(seen(PEERS), rest, 5.0)
    assert prune.let_go().leases == rest
    kept = after(prune.keep(), rest, 1e6)
    assert (kept.leases, kept.due_at) == (PEERS, FOR_EVER)
    assert after(kept, PEERS, 1e6 + 1).held == {}
    assert kept.let_go().leases == rest


def test_nothing_is_done_while_nothing_changes() -> None:
    prune = after(seen(PEERS), PEERS, 1.0)
    assert after(prune, PEERS, 2.0) is prune
    assert Acting().leases(prune) is PEERS


steps = st.lists(
    st.tuples(
        st.dictionaries(st.integers(2, 30), st.integers(0, 2), max_size=29),  # peer: its version
        st.sampled_from([0.0, 0.1, 0.5, 1.0, 30.0, 61.0]),  # seconds since the step before
    ),
    min_size=1,
    max_size=12,
)
limits = st.sampled_from([parse_limit(t) for t in ("50%", "10%", "3", "off")])


def versioned(numbers: Mapping[int, int]) -> dict[str, Lease]:
    """Peers that may have moved to another VTEP (1) or node (2) since."""
    forms = {0: {}, 1: {"macs": "moved"}, 2: {"public": 99}}
    found = [lease(i, **forms[v], revision=i + v) for i, v in numbers.items()]  # type: ignore[arg-type]  # each value fits
    return by_key(OWN, *found)


@settings(max_examples=300, deadline=None)
@given(steps, limits)
def test_store_is_believed_in_all_but_what_is_missing_and_that_not_for_long(
    history: list[tuple[dict[int, int], float]], limit: PruneLimit
) -> None:
    prune, now, acting = Prune(), 0.0, Acting()
    known: dict[str, Lease] = {}
    for numbers, pause_s in history:
        now += pause_s
        view = versioned(numbers)
        before, prune = prune, after(prune, view, now, limit)
        held = {key: each.lease for key, each in prune.held.items()}
        assert prune.leases == {**view, **held}
        assert acting.leases(prune) == prune.leases
        assert acting.leases(prune) is acting.leases(prune)
        assert all(prune.leases[key] is each for key, each in view.items()), "the newer fact wins"
        assert not held.keys() & view.keys()
        assert all(known[key] is each for key, each in held.items()), "nothing is invented"
        taken = {ip for each in view.values() for ip in each.attributes.public.values()}
        assert all(taken.isdisjoint(each.attributes.public.values()) for each in held.values())
        assert all(now < (each.until or 0) <= now + limit.delay_s for each in prune.held.values())
        new = held.keys() - before.held.keys()
        if new and limit.count is None:
            assert len(new) + len(before.held) >= AT_LEAST
        known |= view
    last = after(prune, versioned(history[-1][0]), now + limit.delay_s, limit)
    assert last.held == {}
    assert last.leases == versioned(history[-1][0])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 41), unique=True, min_size=1), st.data())
def test_how_a_deletion_is_cut_into_events_does_not_matter(
    order: list[int], data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
    whole = after(seen(PEERS), {k: v for k, v in PEERS.items() if v.subnet not in
                                [subnet(i) for i in order]}, 5.0)  # fmt: skip
    prune, gone = seen(PEERS), set()
    for step, (i, is_told) in enumerate(zip(order, cuts, strict=True)):
        gone.add(subnet(i).key)
        if is_told or step == len(order) - 1:
            view = {key: each for key, each in PEERS.items() if key not in gone}
            prune = after(prune, view, 5.0 + step * 0.02)
    assert prune.leases == whole.leases
    assert prune.held.keys() == whole.held.keys()
