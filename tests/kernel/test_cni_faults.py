"""A request that is cut off at any of its steps leaves nothing half, and loses nothing.

``tests/kernel/cni_faults.py`` does it, in processes of its own.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.kernel.netns import MakeNetns

pytestmark = pytest.mark.kernel

Outcome: TypeAlias = Mapping[str, Any]
LEAST_STEPS = {
    "ptp ADD": 60,
    "ptp DEL": 15,
    "ptp CHECK": 15,
    "ptp GC": 15,
    "bridge ADD": 100,
    "bridge DEL": 40,
    "bridge CHECK": 15,
    "bridge GC": 40,
    "ipam ADD": 30,
    "ipam DEL": 5,
    "ipam GC": 10,
}
EVERYTHING = {"fault", "refused", "exhausted", "killed"}
WITHOUT_DESCRIPTOR = {"ipam DEL": {"exhausted"}}  # to forget an address takes none


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", LEAST_STEPS)
def test_request_that_is_cut_off_at_any_step(
    make_netns: MakeNetns, tmp_path: Path, kind: str
) -> None:
    node, pod = make_netns(), make_netns()
    words = (sys.executable, "-m", "tests.kernel.cni_faults", str(pod.path), str(tmp_path / "a"))
    found = json.loads(node.run(*words, *kind.split()))
    assert not found["plain"]["code"], found["plain"]
    command = kind.split()[1]
    assert found["plain"]["whole"] == (command in {"ADD", "CHECK"})
    assert found["plain"]["then"] == []
    outcomes: list[Outcome] = [each for each in found["outcomes"] if each["fired"]]
    assert len(outcomes) > LEAST_STEPS[kind], "most steps are met again"
    judge = {"ADD": cut_off_adds, "CHECK": cut_off_checks}.get(command, cut_off_removals)
    wrong = [each for each in outcomes if each["then"] or not judge(each)]
    assert wrong == []
    tried = {each["what"] for each in outcomes}
    assert tried | WITHOUT_DESCRIPTOR.get(kind, set()) == EVERYTHING


def cut_off_adds(outcome: Outcome) -> bool:
    """Return whether an ADD that failed, or was killed, left what it may."""
    left = outcome["left"]
    if outcome["what"] == "killed":
        return not left or outcome["whole"]
    if not outcome["code"]:  # it did without what failed
        return bool(outcome["whole"])
    if outcome["what"] == "exhausted":  # then a record tells of what could not be removed
        return not left or any(each.startswith("record of") for each in left)
    expected = {"fault": {999}, "refused": {4, 5, 102}}[outcome["what"]]
    return not left and outcome["code"] in expected


def cut_off_checks(outcome: Outcome) -> bool:
    """Return whether a CHECK that failed, or was killed, left the attachment as it was."""
    return bool(outcome["whole"])


def cut_off_removals(outcome: Outcome) -> bool:
    """Return whether a DEL or GC that failed, or was killed, left no link without its record."""
    left = outcome["left"]
    is_told = not left or any(each.startswith("record of") for each in left)
    return is_told and (bool(outcome.get("code", 1)) or not left)
