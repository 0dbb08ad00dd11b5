"""This node's pods, told to the store: with the node's lease they stay, with it they leave."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from overlay.agent.attachments import Attachments
from overlay.agent.policy_pods import own_pods
from overlay.agent.status import Status
from overlay.model.lease import LeaseView
from overlay.model.netpol import Pod, PodKey
from overlay.model.node import NodeIdentity
from overlay.store.base import StopSignal, StoreError
from overlay.store.policy_source import PolicyStore

log = logging.getLogger(__name__)

_GATHER_S: Final = 0.02  # pods that start together are told of together
# Nobody waits to hear of a pod while there are no policies.
_GATHER_IDLE_S: Final = 1.0
_RETRY_S: Final = (0.2, 1.0, 5.0)
_IDLE_S: Final = 3600.0


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
    ) -> None:
        self._node, self._attachments = node, attachments
        self._status, self._store, self._is_urgent = status, store, is_urgent
        self._bell = threading.Event()
        self._lease_id: int | None = None  # None while the node has none
        self._told: tuple[dict[PodKey, Pod], int] | None = None

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

    def run(self, stop: StopSignal) -> None:
        """Tell of pods until ``stop`` is set."""
        failures = 0
        while not stop.is_set():
            self._bell.wait(_IDLE_S if not failures else _RETRY_S[min(failures, 3) - 1])
            stop.wait(_GATHER_S if self._is_urgent() else _GATHER_IDLE_S)
            self._bell.clear()
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
