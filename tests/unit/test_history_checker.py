"""The history checkers judge right: hand-made histories, good and bad."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.model.subnet import parse_subnet
from tests.history.ownership import check, main
from tests.history.record import (
    NEVER,
    Holding,
    Kind,
    Operation,
    begin_line,
    end_line,
    read_history,
)
from tests.history.revisions import Change, audit

S, T = "10.244.1.0/24", "10.244.2.0/24"
HALF = "10.244.1.128/25"  # of S
TTL_S = 10.0


def history(text: str) -> list[Operation]:
    """Return a history of lines such as ``NUMBER CLIENT BEGIN-END KIND SUBNET [#BASIS] OUTCOME``.

    Without an end the operation never ended. A view has ``SUBNET=CLIENT@CREATED,...``
    for its subnet, or ``nothing``.
    """
    found = []
    for line in text.strip().splitlines():
        words = line.split()
        number, client, times, kind, what = words[:5]
        begin, _, end = times.partition("-")
        held = [h for h in what.split(",") if "=" in h]
        basis = [int(word[1:]) for word in words if word.startswith("#")]
        found.append(
            Operation(
                int(number),
                client,
                kind,  # type: ignore[arg-type]  # a word of Kind
                float(begin),
                float(end) if end else NEVER,
                words[-1],  # type: ignore[arg-type]  # a word of Outcome
                parse_subnet(what) if kind != "view" and what != "?" else None,
                basis[0] if basis else None,
                TTL_S,
                0,
                tuple(holding(text) for text in held),
            )
        )
    return found


def holding(text: str) -> Holding:
    subnet, _, rest = text.partition("=")
    client, _, created = rest.partition("@")
    return Holding(parse_subnet(subnet), client, int(created or 0))


GOOD = {
    "nothing": "",
    "claimed, renewed, released, claimed by another": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 renew {S} #1 ok
        3 a 4-5 release {S} #2 ok
        11 b 6-7 acquire {S} ok""",
    "claims of two subnets at once": f"""
        1 a 0-5 acquire {S} ok
        11 b 0-5 acquire {T} ok""",
    "released and claimed at the same time": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-6 release {S} #1 ok
        11 b 3-5 acquire {S} ok""",
    "the holder claims again": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 acquire {S} ok""",
    "run out, then claimed by another": f"""
        1 a 0-1 acquire {S} ok
        11 b 2-11 acquire {S} ok""",
    "renewed late, for nobody wanted it": f"""
        1 a 0-1 acquire {S} ok
        2 a 90-91 renew {S} #1 ok""",
    "stale renewal is refused": f"""
        1 a 0-1 acquire {S} ok
        11 b 11-12 acquire {S} ok
        2 a 13-14 renew {S} #1 lost
        12 b 15-16 renew {S} #11 ok""",
    "released twice, the second time by a lost answer's retry": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 release {S} #1 unknown
        3 a 4-5 release {S} #1 ok""",
    "release of unknown outcome is done later": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 release {S} #1 unknown
        11 b 4-5 view {S}=a ok
        12 b 6-7 acquire {S} ok""",
    "renewal of unknown outcome was done": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 renew {S} #1 unknown
        3 a 4-5 renew {S} #1 lost""",
    "renewal of unknown outcome was not done": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 renew {S} #1 unknown
        3 a 4-5 renew {S} #1 ok""",
    "release is done, its answer lost, and the next look finds somebody else": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-5 release {S} #1 lost
        11 b 3-4 acquire {S} ok""",
    "killed while it claimed: another sees what it claimed": f"""
        1 a 0- acquire ? unknown
        11 b 20-21 view {S}=a ok
        12 b 30-31 acquire {S} ok""",
    "killed while it claimed: seen before somebody else gets it": f"""
        1 a 0- acquire ? unknown
        11 b 2-9 view {S}=a ok
        21 c 3-4 acquire {S} ok""",
    "a claim lets go of what the client held before": f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 acquire {T} ok
        11 b 2-3 acquire {S} ok""",
    "younger claim that overlaps is seen and counts for nothing": f"""
        1 a 0-1 acquire {S} ok
        11 b 2-9 acquire {T} ok
        21 c 3-4 view {S}=a@1,{HALF}=b@2 ok""",
    "a view of the moment before": f"""
        1 a 0-4 acquire {S} ok
        11 b 1-5 view nothing ok""",
    "views of two clients, one before the other": f"""
        1 a 0-9 acquire {S} ok
        11 b 1-2 view nothing ok
        21 c 3-4 view {S}=a ok""",
}
BAD = {
    "double claim": (
        11,
        f"""
        1 a 0-1 acquire {S} ok
        11 b 2-3 acquire {S} ok""",
    ),
    "double claim at once": (
        11,
        f"""
        1 a 0-3 acquire {S} ok
        11 b 1-4 acquire {S} ok""",
    ),
    "double claim of a part": (
        11,
        f"""
        1 a 0-1 acquire {S} ok
        11 b 2-3 acquire {HALF} ok""",
    ),
    "blind overwrite: the old holder still renews": (
        2,
        f"""
        1 a 0-1 acquire {S} ok
        11 b 11-12 acquire {S} ok
        2 a 13-14 renew {S} #1 ok""",
    ),
    "blind overwrite, seen by the one who lost it": (
        12,
        f"""
        1 a 0-1 acquire {S} ok
        11 b 2-3 view {S}=a ok
        21 c 2-3 renew {S} #99 unknown
        12 b 4-5 view {S}=c ok""",
    ),
    "stale renewal is accepted": (
        3,
        f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 renew {S} #1 ok
        3 a 4-5 renew {S} #1 ok""",
    ),
    "released lease is renewed: resurrected": (
        3,
        f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 release {S} #1 ok
        3 a 4-5 renew {S} #1 ok""",
    ),
    "resurrected in a view": (
        11,
        f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 release {S} #1 ok
        11 b 4-5 view {S}=a ok""",
    ),
    "run out too early": (
        11,
        f"""
        1 a 0-1 acquire {S} ok
        11 b 2-9.9 acquire {S} ok""",
    ),
    "run out too early although it was renewed": (
        11,
        f"""
        1 a 0-1 acquire {S} ok
        2 a 8-9 renew {S} #1 ok
        11 b 12-17 acquire {S} ok""",
    ),
    "lost without a reason": (
        2,
        f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 renew {S} #1 lost""",
    ),
    "release that says lost, and the lease is there still": (
        11,
        f"""
        1 a 0-1 acquire {S} ok
        2 a 2-3 release {S} #1 lost
        11 b 4-5 view {S}=a ok""",
    ),
    "released by one who no longer had it": (
        2,
        f"""
        1 a 0-1 acquire {S} ok
        11 b 11-12 acquire {S} ok
        2 a 13-14 release {S} #1 ok""",
    ),
    "a stale view": (
        11,
        f"""
        1 a 0-1 acquire {S} ok
        11 b 2-3 view nothing ok""",
    ),
    "views that go back": (
        21,
        f"""
        1 a 0-1 acquire {S} ok
        2 a 2-9 release {S} #1 ok
        11 b 3-4 view nothing ok
        21 c 5-6 view {S}=a ok""",
    ),
    "a view of two holders of equal age": (
        11,
        f"""
        1 a 0-5 acquire {S} ok
        11 b 6-7 view {S}=a,{HALF}=c ok""",
    ),
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD.keys())
def test_good_history_is_linearizable(text: str) -> None:
    violation = check(history(text))
    assert violation is None, str(violation)


@pytest.mark.parametrize(("culprit", "text"), BAD.values(), ids=BAD.keys())
def test_bad_history_is_found_and_its_operation_named(culprit: int, text: str) -> None:
    violation = check(history(text))
    assert violation is not None
    assert violation.operation.number == culprit
    assert f"#{culprit} " in str(violation)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 1), st.sampled_from("abc"), st.floats(0, 1), st.floats(0, 1)),
        max_size=9,
    )
)
def test_whatever_a_lock_does_is_linearizable(
    steps: list[tuple[float, str, float, float]],
) -> None:
    """Each operation takes effect at a moment of its own, somewhere between beginning and end."""
    moments, holder, now_s = list[tuple[str, float]](), "", 0.0
    for gap_s, client, _, _ in steps:
        now_s += gap_s
        holder = "" if holder else client
        moments.append((holder or moments[-1][0], now_s))
    operations: list[Operation] = []
    for number, (client, at_s) in enumerate(moments):
        # A client's operations meet, at most, half way between their moments.
        mine = [s for c, s in moments if c == client]
        first_s = max((s for s in mine if s < at_s), default=at_s - 2)
        last_s = min((s for s in mine if s > at_s), default=at_s + 2)
        _, _, early, late = steps[number]
        kind: Kind = "release" if number % 2 else "acquire"
        operations.append(
            Operation(
                number,
                client,
                kind,
                at_s - early * (at_s - first_s) / 2.01,
                at_s + late * (last_s - at_s) / 2.01,
                "ok",
                parse_subnet(S),
                number - 1 if number % 2 else None,
            )
        )
    violation = check(operations)
    assert violation is None, str(violation)


def test_records_survive_a_cut_off_line(tmp_path: Path) -> None:
    (done,) = history(f"1 a 0-1 acquire {S} ok")
    (seen,) = history(f"2 a 2-3 view {S}=a@7 ok")
    (cut,) = history(f"3 a 4- renew {S} #1 unknown")
    lines = [begin_line(done), end_line(done), begin_line(seen), end_line(seen), begin_line(cut)]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join([*lines, '{"end": 3, "at']))
    seen = dataclasses.replace(seen, ttl_s=TTL_S)
    assert read_history([file]) == [done, seen, cut]
    assert main([str(file)]) == 0


def told(text: str) -> list[Change]:
    """Return changes, one a line: ``REVISION AT SUBNET CLIENT #OPERATION``, or ``... gone``."""
    found = []
    for line in text.strip().splitlines():
        revision, at, subnet, client, *rest = line.split()
        number = int(rest[0][1:]) if rest else 0
        who = client if client != "gone" else None
        found.append(Change(int(revision), parse_subnet(subnet), who, number, float(at)))
    return found


def done(text: str, **revisions: int) -> list[Operation]:
    """Return a history whose operation N wrote revision ``rN``."""
    return [
        dataclasses.replace(o, revision=revisions.get(f"r{o.number}", 0)) for o in history(text)
    ]


PLAIN = f"""
    1 a 0-1 acquire {S} ok
    2 a 2-3 renew {S} #1 ok
    3 a 4-5 release {S} #2 ok
    11 b 6-7 acquire {S} ok"""
PLAIN_REVISIONS = {"r1": 5, "r2": 6, "r11": 8}
PLAIN_CHANGES = f"""
    5 0.5 {S} a #1
    6 2.5 {S} a #2
    7 4.5 {S} gone
    8 6.5 {S} b #11"""


def test_audit_is_silent_where_all_is_in_order() -> None:
    assert audit(told(PLAIN_CHANGES), done(PLAIN, **PLAIN_REVISIONS)) == []


def test_audit_lets_a_younger_key_be_withdrawn() -> None:
    operations = done(f"1 a 0-1 acquire {S} ok\n11 b 0-2 acquire {T} ok", r1=5, r11=8)
    changes = f"5 0.5 {S} a #1\n6 0.6 {HALF} b #11\n7 0.7 {HALF} gone\n8 0.8 {T} b #11"
    assert audit(told(changes), operations) == []


@pytest.mark.parametrize(
    ("operations", "revisions", "changes", "words"),
    [
        pytest.param(
            f"1 a 0-1 acquire {S} ok\n11 b 2-3 acquire {S} ok",
            {"r1": 5, "r11": 6},
            f"5 0.5 {S} a #1\n6 2.5 {S} b #11",
            "b wrote over 10.244.1.0/24 of a",
            id="blind overwrite",
        ),
        pytest.param(
            f"1 a 0-1 acquire {S} ok\n11 b 2-3 acquire {HALF} ok\n2 a 4-5 renew {S} #1 ok",
            {"r1": 5, "r11": 6, "r2": 7},
            f"5 0.5 {S} a #1\n6 2.5 {HALF} b #11\n7 4.5 {S} a #2",
            "a renews 10.244.1.0/24 (created at 5) beside 10.244.1.128/25 of b",
            id="two confirmed holders of a part",
        ),
        pytest.param(
            f"1 a 0-1 acquire {S} ok\n11 b 2-3 acquire {HALF} unknown\n"
            f"12 b 4-5 renew {HALF} #11 ok",
            {"r1": 5, "r12": 7},
            f"5 0.5 {S} a #1\n6 2.5 {HALF} b #11\n7 4.5 {HALF} b #12",
            "b renews 10.244.1.128/25 (created at 6) beside",
            id="younger one is renewed",
        ),
        pytest.param(
            f"1 a 0-1 acquire {S} ok",
            {"r1": 5},
            f"5 0.5 {S} a #1\n6 3 {S} gone",
            "vanished 7.000 s before its time",
            id="vanished",
        ),
        pytest.param(
            f"1 a 0-1 acquire {S} ok", {"r1": 9}, f"5 0.5 {S} a #1", "no such write", id="not there"
        ),
        pytest.param(
            f"1 a 0-1 acquire {S} ok\n2 a 2-3 renew {S} #1 ok",
            {"r1": 5, "r2": 7},
            f"5 0.5 {S} a #1\n6 2.2 {S} a #2\n7 2.4 {S} a #2",
            "wrote twice: at revisions 6 and 7",
            id="applied transaction is sent again",
        ),
        pytest.param(
            f"1 a 0-1 acquire {S} ok",
            {"r1": 5},
            f"5 0.5 {S} a #1\n6 2.5 {T} a #77",
            "written by #77 of a, which did no such thing",
            id="nobody's write",
        ),
        pytest.param(
            f"1 a 0-1 acquire {S} ok\n11 b 2-3 acquire {T} ok",
            {"r1": 6, "r11": 5},
            f"5 2.5 {T} b #11\n6 2.6 {S} a #1",
            "wrote before #1 a acquire",
            id="order in time and in the store",
        ),
    ],
)
def test_audit_finds(operations: str, revisions: dict[str, int], changes: str, words: str) -> None:
    problems = audit(told(changes), done(operations, **revisions))
    assert len(problems) == 1, problems
    assert words in problems[0]
