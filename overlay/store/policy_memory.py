"""Policies in memory, for one process: tests, and what is tried out before it is applied.

It parses and refuses what the etcd store parses and refuses.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Self

from overlay.model.document import parse_json
from overlay.model.netpol import Labels, Pod, PodKey
from overlay.model.policy_view import PolicyView
from overlay.store.base import StopSignal, StoreError
from overlay.store.etcd_table import KeyValue
from overlay.store.policy_objects import (
    FOLDERS,
    LABELS,
    PODS,
    checked_labels,
    pod_document,
    stored_objects,
)
from overlay.store.policy_source import Document, NoSuchObjectError
from overlay.store.policy_table import PolicyTable

_POLL_S: Final = 0.05  # how late a watch notices a stop


class MemoryPolicyStore:
    """Objects in a dictionary, shared by any number of threads.

    While ``outage`` is set, every call raises it and watches report it.
    ``put`` writes anything, as somebody without this program would.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._table = PolicyTable("")
        self._bound: dict[str, int] = {}  # etcd lease by key
        self._revision = 1
        self.outage: StoreError | None = None

    def view(self) -> PolicyView:
        """Return everything. See ``PolicySource``."""
        with self._changed:
            self._check()
            return self._table.view()

    def watch(
        self,
        deliver: Callable[[PolicyView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Deliver views until ``stop`` is set. See ``PolicySource``."""
        seen: int | None = None
        told = False
        while not stop.is_set():
            error, view = self.outage, None
            with self._changed:
                if error is None and seen != self._revision:
                    seen, view = self._revision, self._table.view()
                else:
                    self._changed.wait(_POLL_S)
            if (error is not None) is not told:
                told = not told
                trouble(error)
            if view is not None:
                deliver(view)

    def pod(self, key: PodKey) -> Pod | None:
        """Return None: nodes tell of their pods themselves. See ``PolicySource``."""
        del key
        return None

    def writable(self) -> Self:
        """Return itself. See ``PolicySource``."""
        return self

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def apply(self, documents: Iterable[Document | None]) -> list[str]:
        """Write objects. See ``PolicyStore``."""
        objects = stored_objects(documents)
        with self._changed:
            self._check()
            for name, _, value in objects:
                self.put(name, value)
        return [shown for _, shown, _ in objects]

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete one object. See ``PolicyStore``."""
        path = "/".join(part for part in (FOLDERS[kind], namespace, name) if part)
        with self._changed:
            self._check()
            if path not in dict(self._table.values()):
                raise NoSuchObjectError(f"there is no {kind} {path.partition('/')[2]}")
            self.put(path, None)

    def documents(self) -> Sequence[Document]:
        """Return the objects as they were written. See ``PolicyStore``."""
        with self._changed:
            self._check()
            kept = self._table.values()
        folders = set(FOLDERS.values())
        return [parse_json(v.value or b"") for n, v in kept if n.partition("/")[0] in folders]

    def label(self, pod: PodKey, changes: Mapping[str, str | None]) -> Labels:
        """Change the labels that an operator gives to a pod. See ``PolicyStore``."""
        shown = "/".join(pod)
        with self._changed:
            self._check()
            before = self._table.view().labels.get(pod, {})
            after = {**before, **changes}
            labels = checked_labels(shown, {n: v for n, v in after.items() if v is not None})
            value = json.dumps({"labels": dict(labels)}).encode() if labels else None
            self.put(f"{LABELS}/{shown}", value)
            return labels

    def publish(self, node: str, pods: Sequence[Pod], lease_id: int) -> None:
        """Make ``pods`` the ones that the node tells of. See ``PolicyStore``."""
        wanted = {f"{PODS}/{node}/{pod.namespace}/{pod.name}": pod for pod in pods}
        with self._changed:
            self._check()
            for name, _ in self._table.values():
                if name.startswith(f"{PODS}/{node}/") and name not in wanted:
                    self.put(name, None)
            for name, pod in wanted.items():
                self.put(name, json.dumps(pod_document(pod)).encode(), lease_id)

    def forget_published(self) -> None:
        """Do nothing: it always looks. See ``PolicyStore``."""

    def put(self, name: str, value: bytes | None, lease_id: int = 0) -> None:
        """Write any value under a key below ``policies/``; None deletes it."""
        with self._changed:
            made = dict(self._table.values()).get(name)
            if (made.value if made is not None else None) == value:
                self._bound[name] = lease_id
                return
            self._revision += 1
            created = made.create_revision if made is not None else self._revision
            found = KeyValue(name.encode(), value, created, self._revision, lease_id)
            self._table.apply([found])
            self._bound[name] = lease_id
            self._changed.notify_all()

    def end_lease(self, lease_id: int) -> None:
        """Delete what is bound to an etcd lease, as etcd does at its end."""
        with self._changed:
            for name in [n for n, bound in self._bound.items() if bound == lease_id]:
                self.put(name, None)

    def _check(self) -> None:
        if self.outage is not None:
            raise self.outage
