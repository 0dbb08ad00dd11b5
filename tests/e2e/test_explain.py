"""``overlayctl explain`` names faults that are really there, and nothing where all is well."""

from collections.abc import Iterator, Mapping
from uuid import uuid4

import pytest

from overlay.lab.fabric import Lab, running
from overlay.lab.faults.ways import WAYS, WayFault, asked, names, planted
from overlay.lab.topology import LabOptions
from tests.kernel.netns import host_unchanged

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    options = LabOptions(name=f"t-{uuid4().hex[:8]}", nodes=2, pods=2)
    with host_unchanged(), running(options) as lab:
        yield lab


@pytest.fixture(scope="module")
def known(lab: Lab) -> Mapping[str, str]:
    return names(lab)


@pytest.mark.parametrize("fault", WAYS, ids=lambda fault: fault.name)
def test_planted_fault_is_named(lab: Lab, known: Mapping[str, str], fault: WayFault) -> None:
    whole = asked(lab, fault, known)
    if "stale" not in fault.name:  # the address of nobody is no way to begin with
        assert whole.returncode == 0, whole.stdout
    with planted(lab, fault, known):
        found = asked(lab, fault, known)
    assert fault.expected.format(**known) in found.stdout, found.stdout + found.stderr
    assert found.returncode == 1, found.stdout
