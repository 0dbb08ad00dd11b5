"""The table of faults: a fault that is named is told from one that is not."""

import json
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest

from overlay.lab.errors import LabError, LabUsageError
from overlay.lab.fabric import running
from overlay.lab.faults import __main__ as program
from overlay.lab.faults.conditions import BASELINE, HOST, LAST
from overlay.lab.faults.fault import Fault
from overlay.lab.faults.scene import Scene, options
from overlay.lab.faults.second_family import SECOND_FAMILY
from overlay.model.address import FAMILIES
from tests.kernel.netns import host_unchanged

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

BY_NAME = {fault.name: fault for fault in program.FAULTS}


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with host_unchanged(), running(options(f"t-{uuid4().hex[:8]}")) as lab:
        yield Scene(lab, named_s=10.0)


def test_sound_node_has_no_finding(scene: Scene) -> None:
    said = json.loads(scene.ask(f"{BY_NAME['nft flush ruleset'].asked} -o json"))
    assert {found["status"] for found in said["checks"]} == {"fine"}, said


def test_fault_that_nobody_names(scene: Scene) -> None:
    quick = replace(scene_fault("a look that harms nobody"), expected="no such words")
    row = scene.row(quick)
    assert not row.is_named
    assert row.problem.startswith("not named: ")


def test_words_that_are_always_there_count_for_nothing(scene: Scene) -> None:
    row = scene.row(replace(scene_fault("a look"), expected="checks: "))
    assert row.problem == "named before it was planted"


def test_fault_that_is_not_undone(scene: Scene) -> None:
    fault = BY_NAME["flannel's device left"]
    row = scene.row(replace(fault, undo=()))
    assert row.problem == "still named when it was undone"
    scene.row(replace(fault, plant=(), expected="clears up"))


def test_fault_that_cannot_be_planted(scene: Scene) -> None:
    with pytest.raises(LabError, match="`ip link del none` on n1: "):
        scene.row(Fault("x", ("ip link del none",), "y", is_agent_away=False))


# Those that `explain` names are in test_explain.py. The last one leaves the node
# with another subnet, so no test of this scene comes after it.
@pytest.mark.parametrize("fault", [*BASELINE, *HOST, LAST], ids=lambda fault: fault.name)
def test_fault_is_named_with_its_remedy(scene: Scene, fault: Fault) -> None:
    row = scene.row(fault)
    assert row.is_named, row
    assert row.remedy


@pytest.fixture(scope="module")
def dual() -> Iterator[Scene]:
    with host_unchanged(), running(options(f"t-{uuid4().hex[:8]}", FAMILIES)) as lab:
        yield Scene(lab, named_s=10.0)


@pytest.mark.parametrize("fault", SECOND_FAMILY, ids=lambda fault: fault.name)
def test_fault_of_the_second_family_is_named(dual: Scene, fault: Fault) -> None:
    row = dual.row(fault)
    assert row.is_named, row
    assert row.remedy


def scene_fault(name: str) -> Fault:
    return Fault(name, ("true",), "", is_agent_away=False)


def test_name_that_means_nothing() -> None:
    with pytest.raises(LabUsageError, match="no fault is called 'none'"):
        program.chosen(["none"])
    assert [fault.name for fault in program.chosen(["flush"])] == ["nft flush ruleset"]
