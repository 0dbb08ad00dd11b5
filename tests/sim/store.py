"""The product's etcd store, overheard: what it is asked, answers and delivers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from overlay.model.lease import Lease, LeaseAttributes, LeaseView
from overlay.store.base import Claim, StopSignal, StoreError
from overlay.store.etcd import EtcdLeaseStore
from tests.sim.loop import Process

if TYPE_CHECKING:
    from tests.sim.node import Known


class SimStore(EtcdLeaseStore):
    """``EtcdLeaseStore`` as it is; it only tells the invariants what passes."""

    process: Process
    known: "Known"
    delivered: Callable[[LeaseView], None]
    claimed: Callable[[str, Lease], None]

    def watch(
        self,
        deliver: Callable[[LeaseView], None],
        trouble: Callable[[StoreError | None], None],
        stop: StopSignal,
    ) -> None:
        """Watch, and let each view be judged before the agent sees it."""
        super().watch(self.judged(deliver), trouble, stop)

    def judged(self, deliver: Callable[[LeaseView], None]) -> Callable[[LeaseView], None]:
        """Return what judges a view and then hands it to ``deliver``."""

        def judge(view: LeaseView) -> None:
            self.delivered(view)
            self.known.views = [view]
            deliver(view)

        return judge

    def acquire(self, claim: Claim) -> Lease:
        """Acquire, and say so."""
        with self._calling():
            self.process.begin_claim()
            lease = super().acquire(claim)
            self.claimed(self.process.claim, lease)
        return lease

    def renew(self, lease: Lease, attributes: LeaseAttributes, ttl_s: int) -> Lease:
        """Renew."""
        with self._calling():
            return super().renew(lease, attributes, ttl_s)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        self.known.is_in_store = True
        try:
            yield
        finally:
            self.known.is_in_store = False
            self.process.claim = ""


MakeStore: TypeAlias = type[SimStore]  # which store a process has; a planted bug has another
