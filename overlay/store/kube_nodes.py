"""Single nodes of Kubernetes: read as they stand, annotated while they are as they were read."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from lightkube.resources.core_v1 import Node, NodeStatus

from overlay.store.base import StoreAccessError, StoreError, StoreUnavailableError
from overlay.store.kube_client import MERGE, Kind, KubeClient
from overlay.store.kube_errors import ConflictError, KubeUnavailableError, NotThereError
from overlay.store.kube_node import NodeFacts, NodeReader
from overlay.store.kube_watch import Found, read_object

T = TypeVar("T")

_WRITE_S: Final = 10.0  # how long races for the node object may be lost before giving up
_RACE_PAUSE_S: Final = 0.2  # at most, at random, after a race was lost
_REFUSED_S: Final = (0.5, 30.0)  # first and longest time that a write is not tried again


class NodeWaitingError(StoreError):
    """This node is not in Kubernetes yet, or has no podCIDR: whoever gives it one is waited for."""


class Nodes:
    """Reads and annotates nodes; ``stem`` is what the annotations' names begin with."""

    def __init__(
        self,
        client: KubeClient,
        stem: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        reader = NodeReader(stem)
        self.kind = Kind(Node, "nodes", reader.read)
        # Flannel's way: a role that may patch nodes/status, as flannel's may, is enough.
        self._status = Kind(NodeStatus, "nodes/status", reader.read)
        self._client = client
        self._stem = stem
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        # What was refused last, until when it is not tried again, and after what pause.
        self._refused: tuple[StoreError, float, float] | None = None

    def get(self, name: str) -> tuple[Found[NodeFacts], NodeFacts]:
        """Return a node as it stands. Raises NodeWaitingError while it cannot have a lease."""
        try:
            raw = self._client.call("get", self.kind, name=name)
        except NotThereError as exc:
            raise _no_node(name) from exc
        found, facts = self._object(raw)
        return found, refuse_waiting(facts, name)

    def annotate(
        self, name: str, changes: Mapping[str, str | None], expected: Found[NodeFacts] | None
    ) -> Found[NodeFacts]:
        """Write annotations by their short names, None to remove; return the node after it.

        Raises ConflictError when the node is not as ``expected`` any more.
        """
        meta: dict[str, Any] = {
            "annotations": {self._stem + key: value for key, value in changes.items()}
        }
        if expected is not None:
            meta["resourceVersion"] = str(expected.revision)
        try:
            raw = self._client.call(
                "patch", self._status, name=name, body={"metadata": meta}, content_type=MERGE
            )
        except NotThereError as exc:
            raise _no_node(name) from exc
        return self._object(raw)[0]

    def written(self, once: Callable[[], T]) -> T:
        """Return what ``once`` does, again while the node changes under it.

        After a refusal nothing is asked for a while: every change of any node
        wakes the claimant.
        """
        now = self._clock()
        if self._refused is not None and now < self._refused[1]:
            raise self._refused[0]
        try:
            result = self._raced(once, now + _WRITE_S)
        except (StoreUnavailableError, StoreAccessError) as exc:
            self._note_refusal(exc)
            raise
        self._refused = None
        return result

    def _raced(self, once: Callable[[], T], deadline: float) -> T:
        while True:
            try:
                return once()
            except ConflictError as exc:
                if self._clock() > deadline:
                    msg = f"the node changes too fast to be written: {exc}"
                    raise StoreUnavailableError(msg) from exc
            self._sleep(self._uniform(0, _RACE_PAUSE_S))

    def _note_refusal(self, exc: StoreError) -> None:
        first_s, most_s = _REFUSED_S
        pause_s = min(self._refused[2] * 2, most_s) if self._refused is not None else first_s
        until = self._clock() + pause_s * self._uniform(0.5, 1.0)
        self._refused = (exc, until, pause_s)

    def _object(self, raw: bytes) -> tuple[Found[NodeFacts], NodeFacts]:
        try:
            found = read_object(self.kind, raw)
        except ValueError as exc:
            msg = f"Kubernetes API at {self._client.url}: node cannot be read: {exc}"
            raise KubeUnavailableError(msg) from exc
        if found.value is None:
            raise StoreError(f"node {found.key}: {found.error}")
        return found, found.value


def refuse_waiting(facts: NodeFacts | None, name: str) -> NodeFacts:
    """Return a node that can have a lease; raise NodeWaitingError while it is not there yet.

    Nor is one without a podCIDR.
    """
    if facts is None:
        raise _no_node(name)
    if not facts.pod_cidrs:
        msg = (
            f"node {name} has no podCIDR yet; waiting for Kubernetes to give it one "
            "(kube-controller-manager with --allocate-node-cidrs=true and --cluster-cidr)"
        )
        raise NodeWaitingError(msg)
    return facts


def _no_node(name: str) -> NodeWaitingError:
    return NodeWaitingError(
        f"there is no node {name} in Kubernetes yet; waiting for its kubelet to register it (its "
        "name is the one that `kubectl get nodes` shows: set --node-name or NODE_NAME from "
        "spec.nodeName)"
    )
