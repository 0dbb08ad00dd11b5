"""The outer part that all objects share: kind, apiVersion, metadata."""

from collections.abc import Mapping
from typing import Any, Final

from overlay.policy.network.fields import Field, PolicyFormatError
from overlay.policy.network.syntax import dns_label, dns_subdomain

DEFAULT_NAMESPACE: Final = "default"
_METADATA: Final = (
    "name", "namespace", "labels", "annotations", "generateName", "uid", "resourceVersion",
    "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
    "ownerReferences", "finalizers", "managedFields", "selfLink",
)  # fmt: skip


def root(document: Mapping[str, Any], kind: str, api: str, *, strict: bool) -> Field:
    """Return an object's outermost field, its kind and version checked.

    Who is not strict may leave both out: the items of a list have neither.
    """
    top = Field(document, "", _subject(document, kind), strict)
    top.keys("apiVersion", "kind", "metadata", "spec", "status")
    for key, wanted in (("kind", kind), ("apiVersion", api)):
        field = top.get(key)
        if field is not None and field.value != wanted:
            raise field.error(f"must be {wanted}")
        if field is None and strict:
            raise PolicyFormatError(top.subject, key, None, f"is required; set it to {wanted}")
    return top


def metadata(top: Field) -> Field:
    """Return the metadata."""
    return top.need("metadata").keys(*_METADATA)


def object_name(top: Field, namespace: str) -> tuple[str, str]:
    """Return namespace and name; ``namespace`` where the object names none."""
    meta = metadata(top)
    space = meta.get("namespace")
    name = dns_subdomain(meta.need("name"))
    if space is None or space.value == "":
        return namespace, name
    return dns_label(space), name


def _subject(document: object, kind: str) -> str:
    """Return how errors name the object: nothing of it that could not stand in a log line."""
    meta = document.get("metadata") if isinstance(document, Mapping) else None
    if not isinstance(meta, Mapping):
        return kind
    words = [meta[key] for key in ("namespace", "name") if isinstance(meta.get(key), str)]
    name = "/".join(words)[:120]
    return f"{kind} {name if name.isprintable() and name.isascii() else ascii(name)}".rstrip()
