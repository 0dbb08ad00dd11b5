"""Policies that cannot be read, as far as they can: what isolates stays, what allows goes.

Who cannot read a policy does not know whom it keeps out, and lets nobody in by
it. Policies allow in union, so that to leave one rule out never opens anything.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from overlay.model.netpol import NetworkPolicy, Rule, Selector
from overlay.policy.network.fields import PolicyFormatError
from overlay.policy.network.parse import parse_policy

_TYPES: Final = ("Ingress", "Egress")


def salvaged(document: Any, namespace: str, name: str) -> NetworkPolicy:
    """Return what is left of a NetworkPolicy that ``parse_policy`` refuses.

    Its pods stay isolated in the directions that it names, with those rules
    alone that can be read. Where its selector cannot be, every pod of the
    namespace is isolated, and where the directions cannot be, in both.
    """
    spec = document.get("spec") if isinstance(document, Mapping) else None
    whole = NetworkPolicy(namespace, name, Selector(), (), ())
    if not isinstance(spec, Mapping):
        return whole
    kept = {key: spec[key] for key in ("podSelector", "policyTypes") if key in spec}
    if _read({"policyTypes": kept.get("policyTypes")}) is None:
        kept["policyTypes"] = list(_TYPES)
    # Without types, egress counts where there are rules of it, whatever they say.
    found = _read({**kept, "egress": [{}] if spec.get("egress") else []})
    if found is None:
        return whole
    return replace(
        found,
        namespace=namespace,
        name=name,
        ingress=_rules(spec, "ingress") if found.ingress is not None else None,
        egress=_rules(spec, "egress") if found.egress is not None else None,
    )


def _rules(spec: Mapping[str, Any], way: str) -> tuple[Rule, ...]:
    listed = spec.get(way)
    rules: list[Rule] = []
    for each in listed if isinstance(listed, list) else []:
        found = _read({way: [each], "policyTypes": list(_TYPES)})
        if found is not None:
            rules += (found.ingress if way == "ingress" else found.egress) or ()
    return tuple(rules)


def _read(spec: Mapping[str, Any]) -> NetworkPolicy | None:
    metadata = {"namespace": "any", "name": "any"}
    try:
        return parse_policy({"metadata": metadata, "spec": spec}, strict=False)
    except PolicyFormatError:
        return None
