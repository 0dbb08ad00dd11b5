"""The first listing, begun while the rest of the agent is still loaded.

Loading takes as long as etcd takes to answer: one after the other made a start
longer by a tenth of a second with etcd 3 ms away (November 2026).
"""

import threading
from collections.abc import Callable

from overlay.store.etcd_table import Listing


class EarlyListing:
    """Lists at once, in a thread; ``begun_at`` is when, by ``clock``."""

    def __init__(self, work: Callable[[], Listing], clock: Callable[[], float]) -> None:
        self._work = work
        self._listing: Listing | None = None
        self._fault: Exception | None = None
        self.begun_at = clock()
        self._thread = threading.Thread(target=self._run, name="early", daemon=True)
        self._thread.start()

    def take(self) -> Listing:
        """Return the listing, once; raise what kept it from being made."""
        self._thread.join()
        if self._fault is not None:
            raise self._fault
        listing, self._listing = self._listing, None
        assert listing is not None  # noqa: S101 - taken once
        return listing

    def _run(self) -> None:
        try:
            self._listing = self._work()
        except Exception as exc:  # noqa: BLE001 - raised again by take
            self._fault = exc
