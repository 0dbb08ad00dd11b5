"""Ownership on the real etcd under kill -9, pauses and lost answers: linearizable, or told why not.

``OVERLAY_HISTORY_S`` is the length in seconds, ``OVERLAY_HISTORY_SEED`` the seed.
"""

import os
import secrets
from pathlib import Path

import pytest

from tests.etcd.history_run import Plan, Record, run
from tests.history.ownership import check
from tests.history.revisions import audit

pytestmark = pytest.mark.etcd

LENGTH_S = float(os.environ.get("OVERLAY_HISTORY_S", "30"))
SEED = int(os.environ.get("OVERLAY_HISTORY_SEED") or secrets.randbelow(1 << 32))


def verdict(record: Record) -> list[str]:
    violation = check(record.operations)
    return [
        *([str(violation)] if violation is not None else []),
        *audit(record.changes, record.operations),
    ]


@pytest.mark.timeout(LENGTH_S + 240)
def test_ownership_is_linearizable_under_crashes_pauses_and_lost_answers(tmp_path: Path) -> None:
    record = run(Plan(SEED, LENGTH_S), tmp_path)
    replay = (
        f"OVERLAY_HISTORY_SEED={SEED} OVERLAY_HISTORY_S={LENGTH_S:g} "
        ".venv/bin/python -m pytest -s tests/etcd/test_history.py -k linearizable"
    )
    print(f"{record}\nagain: {replay}")
    problems = verdict(record)
    assert not problems, "\n".join([*problems, f"history: {tmp_path}", f"again: {replay}"])
    # A run in which nothing happened proves nothing.
    done = {(o.kind, o.outcome) for o in record.operations}
    assert done >= {("acquire", "ok"), ("renew", "ok"), ("view", "ok")}, done
    assert record.faults["answer lost"]


@pytest.mark.parametrize("bug", ["blind renewal", "claim without looking"])
def test_planted_bug_is_found_by_both_checkers(tmp_path: Path, bug: str) -> None:
    """The checkers can fail: a store that compares less is found out within a few runs."""
    unfound = {"ownership", "revisions"}
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        plan = Plan(
            seed=SEED + attempt,
            length_s=4,
            processes=2,
            clients=5,
            members=1,
            ttl_s=1,
            pace_s=0.02,
            plant=bug,
            has_faults=False,
        )
        record = run(plan, folder)
        if check(record.operations) is not None:
            unfound.discard("ownership")
        if any(
            "wrote over" in p or "beside" in p for p in audit(record.changes, record.operations)
        ):
            unfound.discard("revisions")
        if not unfound:
            return
    pytest.fail(f"{bug} is not found by {unfound}; seeds from {SEED}")
