"""The fault suite, each row once: repaired in the end, and nothing lost where that is promised."""

import uuid
from collections.abc import Iterator

import pytest

from overlay.lab.chaos import runner
from overlay.lab.chaos.fault import Fault, Skipped
from overlay.lab.chaos.runner import Stages
from overlay.lab.fabric import silent
from tests.kernel.netns import host_unchanged

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

OUTAGE_S = 3.0


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    name = f"t-{uuid.uuid4().hex[:8]}"
    with host_unchanged(), Stages(name, OUTAGE_S, seed=1, progress=silent) as stages:
        yield stages


@pytest.mark.parametrize("fault", runner.all_faults(), ids=lambda fault: fault.name)
def test_fault_is_repaired(stages: Stages, fault: Fault) -> None:
    try:
        seen = runner.plant(stages, fault)
    except Skipped as exc:
        pytest.skip(str(exc))
    assert seen.repair_s is not None, seen.note
    if fault.is_lossless:
        assert seen.lost == 0
