"""Labels and label selectors, read and checked (``metav1.LabelSelector``)."""

from typing import Final

from overlay.model.netpol import Labels, Operator, Requirement, Selector
from overlay.policy.network.fields import Field
from overlay.policy.network.syntax import label_key, label_value

_WITH_VALUES: Final = (Operator.IN, Operator.NOT_IN)


def parse_labels(field: Field | None) -> Labels:
    """Return labels; none where the field is absent."""
    if field is None:
        return {}
    labels: dict[str, str] = {}
    for key, value in field.mapping().items():
        name = label_key(field, key)
        # A null is the empty text to the API server.
        each = Field("" if value is None else value, f"{field.path}[{name}]", field.subject)
        labels[name] = label_value(each)
    return labels


def parse_selector(field: Field) -> Selector:
    """Return a selector, its requirements in a fixed order."""
    field.keys("matchLabels", "matchExpressions")
    requirements = [
        Requirement(key, Operator.IN, frozenset({value}))
        for key, value in parse_labels(field.get("matchLabels")).items()
    ]
    if (expressions := field.get("matchExpressions")) is not None:
        requirements += [_requirement(each) for each in expressions.items()]
    unique = dict.fromkeys(requirements)
    return Selector(tuple(sorted(unique, key=_order)))


def _requirement(field: Field) -> Requirement:
    field.keys("key", "operator", "values")
    operator = Operator(field.need("operator").one_of(*(each.value for each in Operator)))
    key = field.need("key")
    name = label_key(key, key.text())
    values = field.get("values")
    listed = values.items() if values is not None else []
    if operator in _WITH_VALUES and not listed:
        raise field.error(f"operator {operator.value} needs values; add at least one")
    if operator not in _WITH_VALUES and values is not None and listed:
        raise values.error(f"operator {operator.value} takes no values; take them out")
    return Requirement(name, operator, frozenset(label_value(each) for each in listed))


def _order(requirement: Requirement) -> tuple[str, str, list[str]]:
    return requirement.key, requirement.operator.value, sorted(requirement.values)
