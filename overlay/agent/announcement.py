"""Tells the cluster, once this node is ready, that pods can be put there."""

import logging
from collections.abc import Callable
from typing import Final, TypeAlias

from overlay.agent.status import Snapshot, Status
from overlay.model.errors import OverlayError
from overlay.store.base import StopSignal

log = logging.getLogger(__name__)

Announce: TypeAlias = Callable[[], bool]  # returns whether it was news

_NEVER: Final = object()  # no lease was announced yet
_AGAIN_S: Final = 600.0  # somebody may have taken the condition back
_RETRY_S: Final = (1.0, 60.0)  # first and longest pause after a failure


class Announcement:
    """Announces each lease, for a node that is made anew has forgotten what it was told.

    And again every ``again_s``: ``announce`` writes where the condition is another by then.
    """

    def __init__(self, announce: Announce, status: Status, again_s: float = _AGAIN_S) -> None:
        self._announce = announce
        self._again_s = again_s
        self._status = status
        self._done: object = _NEVER

    def run(self, stop: StopSignal) -> None:
        """Work until ``stop`` is set."""
        pause_s = _RETRY_S[0]
        while not stop.is_set():
            snapshot = self._status.wait_for(self._is_news, self._again_s)
            if not snapshot.is_ready:
                continue
            try:
                if self._announce():
                    log.info("this node's condition NetworkUnavailable is False now")
            except OverlayError as exc:
                log.warning("condition NetworkUnavailable is not set: %s", exc)
                stop.wait(pause_s)
                pause_s = min(pause_s * 2, _RETRY_S[1])
            else:
                self._done, pause_s = _lease_of(snapshot), _RETRY_S[0]

    def _is_news(self, snapshot: Snapshot) -> bool:
        return snapshot.is_ready and _lease_of(snapshot) != self._done


def _lease_of(snapshot: Snapshot) -> object:
    own = snapshot.site.own if snapshot.site is not None else None
    return (own.subnet.key, own.create_revision) if own is not None else None
