"""Policies in etcd, beside the fabric's leases: written by ``overlayctl``, pods by their nodes."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Self

from etcd3.transactions import Delete, Mod, Put

from overlay.model.document import parse_json
from overlay.model.errors import UsageError
from overlay.model.netpol import Labels, Pod, PodKey
from overlay.model.policy_view import PolicyView
from overlay.store.base import ConfigConflictError, StopSignal, StoreError
from overlay.store.etcd_connection import EtcdConnection
from overlay.store.etcd_keys import list_prefix, list_prefix_at, read_key
from overlay.store.etcd_watch import EtcdWatch
from overlay.store.policy_objects import (
    FOLDER,
    FOLDERS,
    LABELS,
    PODS,
    checked_labels,
    pod_document,
    stored_objects,
)
from overlay.store.policy_source import Document, NoSuchObjectError
from overlay.store.policy_table import PolicyTable

log = logging.getLogger(__name__)

MOST: Final = 128  # operations in one transaction (etcd's --max-txn-ops)


class EtcdPolicyStore:
    """A ``PolicyStore`` below the fabric's prefix ``root``, over the connections of its leases."""

    def __init__(self, root: str, connection: EtcdConnection) -> None:
        self._root = f"{root}{FOLDER}"
        self._connection = connection
        self._published: dict[bytes, tuple[bytes, int]] | None = None  # value and etcd lease

    def view(self) -> PolicyView:
        """Return everything at one revision. See ``PolicySource``."""
        return self._table().view()

    def watch(
        self,
        deliver: Callable[[PolicyView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Deliver views until ``stop`` is set. See ``PolicySource``."""
        watch = EtcdWatch(
            self._connection,
            PolicyTable(self._root),
            self._root,
            listing=list_prefix,
            keys_at=list_prefix_at,
        )
        watch.run(deliver, trouble, stop)

    def pod(self, key: PodKey) -> Pod | None:
        """Return None: nodes tell of their pods themselves. See ``PolicySource``."""
        del key
        return None

    def writable(self) -> Self:
        """Return itself. See ``PolicySource``."""
        return self

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def apply(self, documents: Iterable[Document | None]) -> list[str]:
        """Write objects in one transaction. See ``PolicyStore``."""
        objects = stored_objects(documents)
        if len(objects) > MOST:
            msg = f"{len(objects)} objects: etcd takes {MOST} at once; apply them in parts"
            raise UsageError(msg)
        if objects:
            self._write([Put(self._key(name), value) for name, _, value in objects])
        return [shown for _, shown, _ in objects]

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete one object. See ``PolicyStore``."""
        path = "/".join(part for part in (FOLDERS[kind], namespace, name) if part)
        answer = self._connection.read(
            lambda client: client.get_response(self._key(path), keys_only=True)
        )
        if not answer.kvs:
            shown = "/".join(part for part in (namespace, name) if part)
            msg = f"there is no {kind} {shown}; `overlayctl policy list` shows what there is"
            raise NoSuchObjectError(msg)
        self._write([Delete(self._key(path))])

    def documents(self) -> Sequence[Document]:
        """Return the objects as they were written. See ``PolicyStore``."""
        folders = set(FOLDERS.values())
        return [
            document
            for name, found in self._table().values()
            if name.partition("/")[0] in folders
            and isinstance(document := _document(found.value or b""), Mapping)
        ]

    def label(self, pod: PodKey, changes: Mapping[str, str | None]) -> Labels:
        """Change the labels that an operator gives to a pod. See ``PolicyStore``."""
        shown = "/".join(pod)
        checked_labels(shown, {name: value or "" for name, value in changes.items()})
        key = self._key(f"{LABELS}/{shown}")
        found = read_key(self._connection, key)
        document = _document(found.value or b"") if found is not None else None
        before = document.get("labels") if isinstance(document, Mapping) else None
        after = {**(before if isinstance(before, Mapping) else {}), **changes}
        labels = checked_labels(shown, {n: v for n, v in after.items() if v is not None})
        value = json.dumps({"labels": dict(sorted(labels.items()))}).encode()
        seen = found.mod_revision if found is not None else 0
        done, _ = self._connection.read(
            lambda client: client.transaction(
                [Mod(key) == seen], [Put(key, value) if labels else Delete(key)], []
            )
        )
        if not done and _value(read_key(self._connection, key)) != (value if labels else None):
            msg = f"the labels of pod {shown} changed in this moment; try again"
            raise ConfigConflictError(msg)
        return labels

    def publish(self, node: str, pods: Sequence[Pod], lease_id: int) -> None:
        """Make ``pods`` the ones that the node tells of. See ``PolicyStore``."""
        prefix = self._key(f"{PODS}/{node}/")
        if self._published is None:
            there = list_prefix(self._connection, prefix.decode()).keys
            self._published = {found.key: (found.value or b"", found.lease_id) for found in there}
        wanted = {
            prefix + f"{pod.namespace}/{pod.name}".encode(): (_packed(pod), lease_id)
            for pod in pods
        }
        before, self._published = self._published, None  # unknown, until all is written
        operations = [Delete(key) for key in before if key not in wanted]
        operations += [
            Put(key, value, lease_id)
            for key, (value, _) in wanted.items()
            if before.get(key) != (value, lease_id)
        ]
        for start in range(0, len(operations), MOST):
            self._write(operations[start : start + MOST])
        self._published = wanted

    def forget_published(self) -> None:
        """See what the node tells of before it tells again. See ``PolicyStore``."""
        self._published = None

    def _table(self) -> PolicyTable:
        table = PolicyTable(self._root)
        table.replace(list_prefix(self._connection, self._root))
        return table

    def _key(self, name: str) -> bytes:
        return f"{self._root}{name}".encode()

    def _write(self, operations: list[Any]) -> None:
        # Whole values over whatever is there: done twice is done once.
        self._connection.read(lambda client: client.transaction([], operations, []))


def _packed(pod: Pod) -> bytes:
    return json.dumps(pod_document(pod), separators=(",", ":")).encode()


def _document(value: bytes) -> Any:
    try:
        return parse_json(value)
    except ValueError:
        return None


def _value(found: Any) -> bytes | None:
    return found.value if found is not None else None
