"""The node's own lease: claimed, kept, renewed, and claimed again when it is lost.

The only thread that writes to the store. It hands the reconciler a ``Site``
whenever config, underlay or own lease make a new one, and never takes a site
away: with the store down, forwarding goes on with the last one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from overlay.agent.flags import Flags
from overlay.agent.host import Host
from overlay.agent.lease_content import Check, ContentSource, LeaseContent
from overlay.agent.lease_times import LeaseTimes
from overlay.agent.status import (
    CLAIMING,
    CONFIG_INVALID,
    LAPSED,
    PROGRAMMING,
    RUNNING,
    WAITING_CONFIG,
    WAITING_HOST,
    Mailbox,
    Status,
)
from overlay.agent.twins import Twins
from overlay.kernel.base import DeviceConflictError
from overlay.model.attachment import Attachment
from overlay.model.errors import ConfigError, OverlayError
from overlay.model.event import Kind
from overlay.model.lease import Lease, LeaseView, format_attributes
from overlay.model.subnet import Subnet
from overlay.plan.backend import UnderlayError
from overlay.plan.planner import Site
from overlay.store.base import (
    Claim,
    ContestedLeaseError,
    DuplicateNodeError,
    LeaseLostError,
    LeaseStore,
    StopSignal,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)

_RETRY_FIRST_S: Final = 0.5
_RETRY_MOST_S: Final = 30.0
_RETRY_CONNECTED_S: Final = 2.0  # at most, where the watch works and calls fail

PodsOutside = Callable[[Subnet], Sequence[Attachment]]


class Lessee:
    """Runs in a thread of its own; ``views`` wakes it, ``sites`` is what it hands over.

    ``check`` is asked before the first claim whether the kernel has room for
    the backend's devices; it raises DeviceConflictError. ``pods_outside``
    returns the pods that have no address of a subnet.
    """

    def __init__(
        self,
        flags: Flags,
        store: LeaseStore,
        status: Status,
        sites: Mailbox[Site],
        check: Check,
        clock: Callable[[], float] = time.monotonic,
        host: Host | None = None,
        pods_outside: PodsOutside = lambda _subnet: (),
    ) -> None:
        self._flags = flags
        self._store = store
        self._status = status
        self._sites = sites
        self._note = status.events.note
        self._clock = clock
        self._host = host if host is not None else Host()
        self._pods_outside = pods_outside
        self._twins = Twins(store, flags.node, clock)
        self._source = ContentSource(flags, self._host, check, clock)
        self.times = LeaseTimes(flags, status, clock)
        self._bell = self._host.bell()
        self.views: Mailbox[LeaseView] = Mailbox(self._bell)
        self.fatal: OverlayError | None = None
        self._site: Site | None = None
        self._seen_revision = 0  # of the last view
        self._settled_at = 0  # views before this revision do not show the own lease as it is
        self._is_rival_sought = False
        self._retry_s = 0.0
        self._is_store_back = False

    def wake(self) -> None:
        """Make the thread look again now: at whether to stop, and at the underlay."""
        self._source.demand()
        self._bell.set()

    def store_is_back(self) -> None:
        """Try again now what failed, and from here on as if nothing had; for any thread."""
        self._is_store_back = True
        self.wake()

    def run(self, stop: StopSignal, failed: Callable[[], None]) -> None:
        """Work until ``stop`` is set.

        What only an operator can mend before the first site exists (no
        underlay, a foreign device, another node with our identity) is left
        in ``fatal``, and ``failed`` is called.
        """
        while not stop.is_set():
            self._bell.clear()
            if self._is_store_back:
                self._is_store_back, self._retry_s = False, 0.0
            try:
                self._step()
                is_asking = self._twins.is_asking  # a renewal that is due waits for the answer
                if not is_asking:
                    self._retry_s = 0.0
                times = self.times
                due_at = self._twins.decide_at if is_asking else min(times.renew_at, times.ask_at)
                wake_at = min(due_at, self._source.look_at)
            except (UnderlayError, DeviceConflictError, DuplicateNodeError) as exc:
                if self._site is None and not self._may_pass(exc):
                    self.fatal = exc
                    failed()
                    return
                if self._site is None or isinstance(exc, DuplicateNodeError):
                    is_claimed = isinstance(exc, DuplicateNodeError)
                    self._status.update(phase=CLAIMING if is_claimed else WAITING_HOST)
                wake_at = self._trouble(exc)
            except OverlayError as exc:
                wake_at = self._trouble(exc)
            wake_at = min(wake_at, self._notice_end())
            most_s = self._flags.audit_interval_s
            self._bell.wait(max(0.0, min(wake_at - self._clock(), most_s)))

    def _notice_end(self) -> float:
        """Say so once the lease has run out; return when to look at that again.

        The subnet may be another node's by then. Forwarding stays as it is.
        """
        site, phase = self._site, self._status.get().phase
        if site is None or phase not in {PROGRAMMING, RUNNING}:
            return float("inf")
        if self.times.is_over:
            text = f"{LAPSED}: pods get no addresses of {site.own.subnet} until the store answers"
            log.error("%s; forwarding stays as it is", text)
            self._note(Kind.LEASE_LAPSED, text)
            self._status.update(phase=LAPSED)
            return float("inf")
        return self.times.ends_at

    def _may_pass(self, exc: OverlayError) -> bool:
        """Return whether what is wrong may mend itself.

        In Kubernetes a Node stays behind for a while whose host is gone and
        whose address is given to the next one.
        """
        if self._flags.waits_for_host:
            return True
        return self._flags.kube is not None and isinstance(exc, DuplicateNodeError)

    def _trouble(self, exc: OverlayError) -> float:
        """Report what failed; return when to try again, or to renew if that comes first."""
        text, before = str(exc), self._status.get()
        if before.lessee_error != text:
            log.warning("%s", text)
        self._status.update(lessee_error=text)
        is_passing = isinstance(exc, StoreUnavailableError) and before.is_store_connected
        most_s = _RETRY_CONNECTED_S if is_passing else _RETRY_MOST_S
        self._retry_s = min(max(self._retry_s * 2, _RETRY_FIRST_S), most_s)
        # A renewal that is due already is what failed, perhaps.
        retry_at = self._clock() + self._retry_s
        return retry_at if self.times.is_renewal_due else min(retry_at, self.times.renew_at)

    def _step(self) -> None:
        view = self.views.get()
        if view is None:
            return
        self._source.see(view)
        if view.config is None and self._site is None:
            self._twins.forget()  # nothing is claimed by this, so no answer is waited for
            self._wait_for_config(view)
            return
        if view.config_error is not None:
            self._report_config(view.config_error)
        unseen: OverlayError | None = None
        try:
            self._look(view)
        except (UnderlayError, DeviceConflictError) as exc:
            if self._site is None:
                raise
            unseen = exc  # what was found before stays in force: the lease is kept by that
        wanted = self._source.content
        if wanted is None:
            return
        if view.revision < self._seen_revision:
            self._settled_at = 0  # the store was put back: what it shows now counts
        self._seen_revision = view.revision
        if self._site is None:
            self._claim(wanted, view)
        else:
            self._keep(self._site, wanted, view)
        if unseen is not None:
            raise unseen
        if self._twins.is_asking:
            return
        if self._status.get().lessee_error is not None:
            log.info("own lease is in order again")
            self._status.update(lessee_error=None)

    def _wait_for_config(self, view: LeaseView) -> None:
        self._source.postpone()
        phase = WAITING_CONFIG if view.config_error is None else CONFIG_INVALID
        text = view.config_error or self._flags.no_config
        if self._status.get().config_error != text:
            log.warning("%s: %s", phase, text)
        self._status.update(phase=phase, config_error=text)

    def _report_config(self, text: str) -> None:
        if self._status.get().config_error != text:
            log.error("%s; the last good config stays in force", text)
            self._note(Kind.CONFIG_REFUSED, text)
        self._status.update(config_error=text)

    def _look(self, view: LeaseView) -> None:
        try:
            if self._source.look(view):
                self._status.update(config_error=None)
        except ConfigError as exc:
            self._refuse_config(str(exc))

    def _refuse_config(self, text: str) -> None:
        if self._site is None:
            log.error("%s", text)
            self._status.update(phase=CONFIG_INVALID, config_error=text)
        else:
            self._report_config(text)

    def _claim(self, wanted: LeaseContent, view: LeaseView) -> None:
        self._status.update(phase=CLAIMING)
        if self._twins.is_waiting(view, wanted.attributes):
            return
        known = self._site.own if self._site is not None else None
        previous = known.subnet if known is not None else None
        claim = Claim(
            node=self._flags.node,
            config=wanted.config,
            attributes=wanted.attributes,
            ttl_s=self._flags.lease_ttl_s,
            preferred=previous or self._host.read_subnet_file(self._flags.subnet_file),
            assured=self._twins.assured() | ({known.mod_revision} if known is not None else set()),
            seen=view if self._site is None else None,  # at the start, where many wait
        )
        self._twins.will_write(wanted.attributes)
        asked_at = self._clock()
        try:
            own = self._store.acquire(claim)
        except ContestedLeaseError as exc:
            self._twins.ask(exc.lease, wanted.attributes)
            return
        except OverlayError:
            self._twins.forget()
            raise
        self._twins.forget()
        self._is_rival_sought = True
        if previous is not None:
            self._note(Kind.LEASE_LOST, f"{previous} is no longer this node's")
        self._note(Kind.LEASE_CLAIMED, f"leased {own.subnet}", subnet=str(own.subnet))
        if previous is None:
            log.info("leased %s", own.subnet)
        elif previous == own.subnet:
            log.warning("own lease %s was gone; claimed again", own.subnet)
        else:
            log.error(
                "subnet %s is lost to another node; this node now leases %s", previous, own.subnet
            )
        self._name_stranded(own.subnet)
        self._written(own, asked_at)
        self._hand_over(wanted, own)

    def _name_stranded(self, subnet: Subnet) -> None:
        stranded = self._pods_outside(subnet)
        if stranded:
            pods = [attachment.shown for attachment in stranded]
            text = (
                f"{len(pods)} pods have no address of {subnet} and are cut off from other nodes; "
                f"recreate them: {'; '.join(pods)}"
            )
            log.error("%s", text)
            self._note(Kind.POD_STRANDED, text, pods=pods)

    def _keep(self, site: Site, wanted: LeaseContent, view: LeaseView) -> None:
        own = site.own
        if self._twins.is_asking:  # to the end, or each view that is late would begin it anew
            self._claim(wanted, view)
            return
        if not wanted.config.offers(own.subnet) and not own.is_permanent:
            log.warning("the network config no longer offers %s", own.subnet)
            self._claim(wanted, view)
            return
        is_changed = False
        if view.revision >= self._settled_at:
            stored = view.leases.get(own.subnet.key)
            self.times.shown()
            if stored is None or not self._is_ours(stored, own):
                self._claim(wanted, view)
                return
            self._refuse_second(stored, view)
            is_changed = _is_changed(view, stored, own)
            own = replace(stored, attributes=own.attributes)
            self.times.seen(own)
        elif self._is_lost_in(view, own):
            self._claim(wanted, view)
            return
        if wanted.attributes.public != own.attributes.public:
            self._twins.refuse_address(wanted.attributes, view.leases.values())
        if wanted.config == site.config and wanted.underlay != site.underlay:
            # The device follows at once, whether or not the store is there to be told.
            self._hand_over(wanted, own)
            if wanted.underlay.local != site.underlay.local:
                # What comes from an address that is gone would only run into its deadline.
                self._store.reconnect()
        must_write = self._twins.must_answer(view, own) or is_changed
        if wanted.attributes != own.attributes or self.times.is_renewal_due or must_write:
            self._twins.will_write(wanted.attributes)
            asked_at = self._clock()
            try:
                own = self._store.renew(own, wanted.attributes, self._flags.lease_ttl_s)
            except LeaseLostError as exc:
                log.warning("%s", exc)
                self._claim(wanted, view)
                return
            log.info("renewed the lease of %s", own.subnet)
            self._note(Kind.LEASE_RENEWED, f"renewed the lease of {own.subnet}")
            self._written(own, asked_at)
        self._hand_over(wanted, own)

    def _is_lost_in(self, view: LeaseView, own: Lease) -> bool:
        """Return whether a view that is older than our claim shows that the claim is lost.

        Such a view is late, as a rule. One that stays so comes from a store
        that was put back to an older state: the store itself is asked then.
        """
        if _shows(view, own):
            self.times.shown()
        elif self.times.is_asking_due:
            self._status.update(phase=CLAIMING)  # until the store has said whose it is
            is_lost = not _shows(self._store.view(), own)
            self.times.asked()
            return is_lost
        return False

    def _is_ours(self, stored: Lease, own: Lease) -> bool:
        return _is_same_claim(stored, own) and not self._twins.is_taken_over(stored, own)

    def _refuse_second(self, stored: Lease, view: LeaseView) -> None:
        """Raise DuplicateNodeError when another node has our identity or address, and came first.

        Whoever claimed second gives its lease back.
        """
        if self._is_rival_sought:
            try:
                self._twins.refuse_second(stored, view)
            except DuplicateNodeError:
                self._store.release(stored)
                self._site = None
                raise
            self._is_rival_sought = False

    def _written(self, own: Lease, asked_at: float) -> None:
        self._twins.has_written(own.attributes)
        self._settled_at = own.mod_revision
        self.times.written(own, asked_at)

    def _hand_over(self, wanted: LeaseContent, own: Lease) -> None:
        site = Site(wanted.config, wanted.backend, own, wanted.underlay)
        known, phase = self._site, self._status.get().phase
        self._site = site
        in_hand = phase in {PROGRAMMING, RUNNING}
        if known is not None and in_hand and _is_same_site(known, site):
            return
        # In this order: the reconciler makes "programming" to "running".
        self._status.update(phase=PROGRAMMING, lessee_error=None, leased=own.subnet)
        self._sites.put(site)


def _shows(view: LeaseView, own: Lease) -> bool:
    stored = view.leases.get(own.subnet.key)
    return stored is not None and _is_same_claim(stored, own)


def _is_same_claim(stored: Lease, own: Lease) -> bool:
    """Return whether the store's lease is still this node's, whoever touched it since."""
    mine, theirs = own.attributes.owner, stored.attributes.owner
    is_same = mine is not None and theirs is not None and mine.node_id == theirs.node_id
    return is_same and not stored.is_vacant  # as its reservation is, in a store that was put back


def _is_changed(view: LeaseView, stored: Lease, own: Lease) -> bool:
    """Return whether the lease does not say any more what this node wrote.

    Others would reach it by what it says, or not find it when they start.
    """
    if any(skipped.key == own.subnet.key for skipped in view.skipped):
        return True
    # What a backend gives may be of other types than what is read back.
    theirs, mine = stored.attributes, own.attributes
    return theirs != mine and format_attributes(theirs) != format_attributes(mine)


def _is_same_site(known: Site, site: Site) -> bool:
    return (
        known.own.subnet == site.own.subnet
        and known.config == site.config
        and known.underlay == site.underlay
        and known.own.attributes == site.own.attributes
    )
