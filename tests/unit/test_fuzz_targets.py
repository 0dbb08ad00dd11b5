"""The targets of ``make fuzz`` hold for their seeds, whole and damaged, and can fail."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.agent import cni_request
from tests.fuzz import targets
from tests.unit import odd

SEEDS = {
    path: path.read_bytes()
    for path in sorted((Path(targets.__file__).parent / "seeds").glob("*/*"))
}


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_seed_is_taken(path: Path) -> None:
    targets.TARGETS[path.parent.name](SEEDS[path])


@settings(deadline=None)
@given(st.data())
def test_damaged_seed_is_taken(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(SEEDS)))
    targets.TARGETS[path.parent.name](data.draw(odd.damaged(SEEDS[path])))


def test_every_target_has_seeds() -> None:
    assert {path.parent.name for path in SEEDS} == set(targets.TARGETS)


def test_what_escapes_a_parser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (seed,) = (data for path, data in SEEDS.items() if path.name == "add")
    monkeypatch.setattr(cni_request, "_parse_arguments", lambda text: dict(text))
    with pytest.raises(ValueError, match="sequence"):
        targets.cni(seed)
