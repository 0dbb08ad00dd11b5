"""What a store holds of policies: parsed once, kept up to date by events.

A key or value that cannot be read is skipped, named, and changes nothing else.
Where the same key held a readable object before, that one counts until the key
is deleted or readable again; else a policy isolates without the rules that
cannot be read (``salvage``): damage never opens what was shut.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from overlay.model.cluster_policy import ClusterNetworkPolicy
from overlay.model.lease import SkippedKey
from overlay.model.netpol import Labels, NetworkPolicy, Pod, PodKey
from overlay.model.policy_view import PolicyView
from overlay.policy.network.fields import PolicyFormatError
from overlay.store.etcd_table import KeyValue, Listing
from overlay.store.policy_objects import (
    Audited,
    GivenLabels,
    Stored,
    parse_stored,
    salvaged_object,
)

log = logging.getLogger(__name__)

T = TypeVar("T")


class PolicyTable:
    """The objects as of ``revision``. Not for several threads at once."""

    def __init__(self, root: str) -> None:
        self._root = root.encode()
        self._objects: dict[str, tuple[int, Stored]] = {}  # by key; when it was made
        self._skipped: dict[str, SkippedKey] = {}
        self._salvaged: set[str] = set()
        self._values: dict[str, KeyValue] = {}
        self.revision = 0
        self.cluster_id = 0

    def replace(self, listing: Listing) -> None:
        """Take over a whole listing; what is not in it is gone."""
        before, self._objects = self._objects, {}
        known, self._values = self._values, {}
        self._skipped = {}
        salvaged, self._salvaged = self._salvaged, set()
        for found in listing.keys:
            name = self._name(found)
            old = known.get(name)
            is_same = old is not None and old.create_revision == found.create_revision
            if is_same and name in before and name not in salvaged:
                self._objects[name] = before[name]
            self._take(found)
        self.revision, self.cluster_id = listing.revision, listing.cluster_id

    def apply(self, events: Iterable[KeyValue]) -> bool:
        """Take over changes in order; return whether there were any."""
        is_changed = False
        for event in events:
            self._take(event)
            is_changed = True
            self.revision = max(self.revision, event.mod_revision)
        return is_changed

    def is_made_of(self, keys: Iterable[KeyValue]) -> bool:
        """Return whether the table holds exactly ``keys``, values and all."""
        return {self._name(found): found for found in keys} == self._values

    def values(self) -> list[tuple[str, KeyValue]]:
        """Return what is kept, by key."""
        return sorted(self._values.items())

    def view(self) -> PolicyView:
        """Return what the table now holds; the view does not change any more."""
        labels: dict[PodKey, Labels] = {}
        for name, (_, item) in self._objects.items():
            if isinstance(item, GivenLabels):
                _, namespace, pod = name.split("/", 2)
                labels[namespace, pod] = item.labels
        namespaces = self._all(Audited)
        return PolicyView(
            self.revision,
            {policy.key: policy for policy in self._all(NetworkPolicy)},
            {policy.name: policy for policy in self._all(ClusterNetworkPolicy)},
            {each.namespace.name: each.namespace.labels for each in namespaces},
            frozenset(each.namespace.name for each in namespaces if each.is_audited),
            # Of one that moved to another node both tell for a moment: the newer counts.
            {pod.key: _labelled(pod, labels.get(pod.key)) for pod in self._all(Pod)},
            labels,
            tuple(self._skipped[name] for name in sorted(self._skipped)),
        )

    def _all(self, kind: type[T]) -> list[T]:
        found = sorted(self._objects.values(), key=lambda each: each[0])
        return [item for _, item in found if isinstance(item, kind)]

    def _name(self, found: KeyValue) -> str:
        return found.key[len(self._root) :].decode(errors="backslashreplace")

    def _take(self, found: KeyValue) -> None:
        name = self._name(found)
        self._skipped.pop(name, None)
        if name in self._salvaged:
            self._salvaged.discard(name)
            self._objects.pop(name, None)
        if found.value is None:
            self._objects.pop(name, None)
            self._values.pop(name, None)
            return
        old = self._values.get(name)
        self._values[name] = found
        if old == found and name in self._objects:
            return
        try:
            self._objects[name] = (found.create_revision, parse_stored(name, found.value))
        except PolicyFormatError as exc:
            log.warning("%s (revision %d) is skipped: %s", ascii(name), found.mod_revision, exc)
            self._skipped[name] = SkippedKey(name, str(exc))
            policy = salvaged_object(name, found.value) if name not in self._objects else None
            if policy is not None:
                self._salvaged.add(name)
                self._objects[name] = (found.create_revision, policy)


def _labelled(pod: Pod, given: Labels | None) -> Pod:
    return replace(pod, labels={**pod.labels, **given}) if given else pod
