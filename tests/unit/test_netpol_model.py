"""Selectors, as the API's text has them."""

import pytest

from overlay.model.netpol import EVERYTHING, Operator, Requirement, Selector

LABELS = {"app": "web", "tier": ""}


@pytest.mark.parametrize(
    ("operator", "key", "values", "is_met"),
    [
        (Operator.IN, "app", {"web", "db"}, True),
        (Operator.IN, "app", {"db"}, False),
        (Operator.IN, "absent", {"web"}, False),
        (Operator.NOT_IN, "app", {"web"}, False),
        (Operator.NOT_IN, "app", {"db"}, True),
        (Operator.NOT_IN, "absent", {"web"}, True),
        (Operator.EXISTS, "tier", set(), True),
        (Operator.EXISTS, "absent", set(), False),
        (Operator.DOES_NOT_EXIST, "tier", set(), False),
        (Operator.DOES_NOT_EXIST, "absent", set(), True),
    ],
)
def test_requirement(operator: Operator, key: str, values: set[str], is_met: bool) -> None:
    assert Requirement(key, operator, frozenset(values)).is_met(LABELS) is is_met


def test_a_selector_asks_for_all_and_an_empty_one_for_nothing() -> None:
    web = Requirement("app", Operator.IN, frozenset({"web"}))
    db = Requirement("app", Operator.IN, frozenset({"db"}))
    assert Selector((web,)).selects(LABELS)
    assert not Selector((web, db)).selects(LABELS)
    assert EVERYTHING.selects({})
