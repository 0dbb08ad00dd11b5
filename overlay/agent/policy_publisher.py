"""This node's pods, told to the store: with the node's lease they stay, with it they leave."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from overlay.agent.attachments import Attachments
from overlay.agent.policy_pods import own_pods
from overlay.agent.status import Status
from overlay.model.lease import LeaseView
from overlay.model.netpol import Pod, PodKey
from overlay.model.node import NodeIdentity
from overlay.model.policy_view import PolicyView
from overlay.store.base import StopSignal, StoreError
from overlay.store.policy_source import PolicyStore

log = logging.getLogger(__name__)

_GATHER_S: Final = 0.02  # pods that start together are told of together
# Nobody waits to hear of a pod while there are no policies.
_GATHER_IDLE_S: Final = 1.0
_RETRY_S: Final = (0.2, 1.0, 5.0)
_IDLE_S: Final = 3600.0
# That the store shows other pods than it was told, before it is told anew: a watch takes moments.
_DOUBT_S: Final = (2.0, 10.0, 60.0)


class PodPublisher:
    """``wake`` and ``follow`` are for any thread, ``run`` is one of its own.

    ``is_urgent`` says whether there are policies.
    """

    def __init__(
        self,
        node: NodeIdentity,
        attachments: Attachments,
        status: Status,
        store: PolicyStore,
        is_urgent: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._node, self._attachments = node, attachments
        self._status, self._store, self._is_urgent = status, store, is_urgent
        self._bell = threading.Event()
        self._lease_id: int | None = None  # None while the node has none
        self._told: tuple[dict[PodKey, Pod], int] | None = None
        self._shown: PolicyView | None = None
        self._doubts = 0  # times that it was told anew, and showed something else
        self._doubted_at: float | None = None

    def wake(self) -> None:
        """Look at the node's pods again."""
        self._bell.set()

    def follow(self, view: LeaseView) -> None:
        """Bind the pods to the node's lease as it now is: every renewal makes another of it."""
        site = self._status.get().site
        own = view.leases.get(site.own.subnet.key) if site is not None else None
        if own is None or own.attributes.owner is None:
            return
        if own.attributes.owner.node_id == self._node.id and own.lease_id != self._lease_id:
            self._lease_id = own.lease_id
            self._bell.set()

    def compare(self, view: PolicyView) -> None:
        """Note what the store shows: somebody may delete keys, or bring back older ones."""
        self._shown = view
        if self._is_otherwise:
            self._bell.set()

    def _doubt_s(self) -> float:
        """Return how many seconds it is until the store is told anew what it does not show."""
        if not self._is_otherwise:
            self._doubts, self._doubted_at = 0, None
            return _IDLE_S
        if self._doubted_at is None:
            self._doubted_at = self._clock()
        patience_s = _DOUBT_S[min(self._doubts, len(_DOUBT_S) - 1)]
        return max(0.0, self._doubted_at + patience_s - self._clock())

    @property
    def _is_otherwise(self) -> bool:
        """Return whether the store shows other pods of this node than it was told."""
        view, told = self._shown, self._told
        if view is None or told is None:
            return False
        own = {key: pod for key, pod in view.pods.items() if pod.node == self._node.name}
        return own.keys() != told[0].keys() or any(
            own[key].addresses != pod.addresses for key, pod in told[0].items()
        )

    def run(self, stop: StopSignal) -> None:
        """Tell of pods until ``stop`` is set."""
        failures = 0
        while not stop.is_set():
            wait_s = _RETRY_S[min(failures, 3) - 1] if failures else _IDLE_S
            self._bell.wait(min(wait_s, self._doubt_s()))
            stop.wait(_GATHER_S if self._is_urgent() else _GATHER_IDLE_S)
            self._bell.clear()
            if self._doubt_s() <= 0:
                self._doubts += 1
                self._doubted_at = self._clock()
                self._store.forget_published()
                self._told = None
            view = self._status.get().view
            if view is not None:
                self.follow(view)
            lease_id = self._lease_id
            pods = own_pods(self._attachments.list(), self._node.name)
            if stop.is_set() or lease_id is None or self._told == (pods, lease_id):
                continue
            try:
                self._store.publish(self._node.id, list(pods.values()), lease_id)
            except StoreError as exc:
                failures += 1
                log.debug("this node's pods are not told to the store yet: %s", exc)
                continue
            failures, self._told = 0, (pods, lease_id)
