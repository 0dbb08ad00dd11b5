"""What a patch makes of an object: merge (RFC 7386), strategic merge, JSON patch (RFC 6902)."""

import copy
from typing import Any

from tests.kube.objects import Object, RefusedError

# The lists that strategic merge patches match item by item, and by which key
# (patchMergeKey in k8s.io/api/core/v1/types.go); others are replaced.
_MERGE_KEYS = {"conditions": "type", "addresses": "type", "taints": "key"}


def patched(found: Object, patch: Any, content_type: str) -> Object:
    """Return ``found`` with ``patch`` applied; ``found`` itself stays as it is."""
    if content_type == "application/json-patch+json":
        return _json_patched(copy.deepcopy(found), patch)
    if content_type == "application/merge-patch+json":
        result: Object = _merged(found, patch, strategic=False)
    elif content_type == "application/strategic-merge-patch+json":
        result = _merged(found, patch, strategic=True)
    else:
        raise RefusedError(415, "UnsupportedMediaType", f"the body of a PATCH as {content_type}")
    return result


def _merged(target: Any, patch: Any, *, strategic: bool, name: str = "") -> Any:
    if strategic and isinstance(patch, list) and isinstance(target, list) and name in _MERGE_KEYS:
        key = _MERGE_KEYS[name]
        result = {item[key]: item for item in target}
        for item in patch:
            result[item[key]] = _merged(result.get(item[key], {}), item, strategic=True)
        return list(result.values())
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value, strategic=strategic, name=key)
    return merged


def _json_patched(found: Object, patch: Any) -> Object:
    for step in patch:
        *way, last = [p.replace("~1", "/").replace("~0", "~") for p in step["path"].split("/")[1:]]
        place: Any = found
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place.get(part)
            if place is None:
                raise RefusedError(422, "Invalid", f"{step['path']}: there is no such place")
        if step["op"] == "test" and place.get(last) != step["value"]:
            raise RefusedError(422, "Invalid", f"{step['path']}: the test failed")
        if step["op"] in {"add", "replace"}:
            place[last] = step["value"]
        if step["op"] == "remove":
            place.pop(last, None)
    return found
