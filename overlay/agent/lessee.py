"""The node's own lease: claimed, kept, renewed, and claimed again when it is lost.

The only thread that writes to the store. It hands the reconciler a ``Site``
whenever config, underlay or own lease make a new one, and never takes a site
away: with the store down, forwarding goes on with the last one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from overlay import __version__
from overlay.agent.flags import Flags
from overlay.agent.host import Host
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
from overlay.model.address import family_of
from overlay.model.attachment import Attachment
from overlay.model.errors import ConfigError, OverlayError
from overlay.model.event import Kind
from overlay.model.lease import Lease, LeaseAttributes, LeaseView, Owner, format_attributes
from overlay.model.network import NetworkConfig
from overlay.model.node import Underlay
from overlay.model.subnet import Subnet
from overlay.plan.backend import Backend, UnderlayError
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
# etcd counts a lease on a clock of its own; those of two machines differ by 500 ppm at
# most while NTP slews them.
_OF_TTL: Final = 0.999
_LATE_S: Final = 2.0  # for which a view may be older than our own claim
_ASK_AGAIN_S: Final = 60.0  # whether the lease is ours, while the views do not show it

Check = Callable[[Backend, Underlay], None]
PodsOutside = Callable[[Subnet], Sequence[Attachment]]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the node's lease should say, and who says so."""

    config: NetworkConfig
    backend: Backend
    underlay: Underlay
    attributes: LeaseAttributes


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
        self._check = check
        self._clock = clock
        self._host = host if host is not None else Host()
        self._pods_outside = pods_outside
        self._twins = Twins(store, flags.node, clock)
        self._bell = self._host.bell()
        self.views: Mailbox[LeaseView] = Mailbox(self._bell)
        self.fatal: OverlayError | None = None
        self._site: Site | None = None
        self._wanted: _Wanted | None = None
        self._seen_config: NetworkConfig | None = None
        self._is_config_lost = False  # the last view had none to read
        self._seen_revision = 0  # of the last view
        self._settled_at = 0  # views before this revision do not show the own lease as it is
        self._is_rival_sought = False
        self._renew_at = float("inf")
        self._ends_at = float("inf")  # the lease, if it is not renewed
        self._look_at = float("inf")  # at the underlay; the first config makes the first look
        self._ask_at = float("inf")  # the store itself, because the views lack our claim
        self._must_look = False
        self._retry_s = 0.0
        self._is_store_back = False
        self._claimed_at = ""

    def wake(self) -> None:
        """Make the thread look again now: at whether to stop, and at the underlay."""
        self._must_look = True
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
                due_at = self._twins.decide_at if is_asking else min(self._renew_at, self._ask_at)
                wake_at = min(due_at, self._look_at)
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
        if self._clock() >= self._ends_at:
            text = f"{LAPSED}: pods get no addresses of {site.own.subnet} until the store answers"
            log.error("%s; forwarding stays as it is", text)
            self._note(Kind.LEASE_LAPSED, text)
            self._status.update(phase=LAPSED)
            return float("inf")
        return self._ends_at

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
        now = self._clock()
        # A renewal that is due already is what failed, perhaps.
        retry_at = now + self._retry_s
        return retry_at if self._renew_at <= now else min(retry_at, self._renew_at)

    def _step(self) -> None:
        view = self.views.get()
        if view is None:
            return
        self._is_config_lost |= view.config_error is not None
        if view.config is None and self._site is None:
            self._twins.forget()  # nothing is claimed by this, so no answer is waited for
            self._wait_for_config(view)
            return
        if view.config_error is not None:
            self._report_config(view.config_error)
        unseen: OverlayError | None = None
        try:
            self._look(view.config)
        except (UnderlayError, DeviceConflictError) as exc:
            if self._site is None:
                raise
            unseen = exc  # what was found before stays in force: the lease is kept by that
        wanted = self._wanted
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
        self._look_at = self._clock() + self._flags.audit_interval_s
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

    def _look(self, config: NetworkConfig | None) -> None:
        """Bring ``_wanted`` in step with the config and, now and then, with the underlay."""
        now = self._clock()
        is_new = config is not None and (config != self._seen_config or self._is_config_lost)
        is_due = self._must_look or now >= self._look_at
        if not is_new and (self._wanted is None or not is_due):
            return
        chosen = config if config is not None else self._seen_config
        if chosen is None:
            return
        # Whatever comes of it: a look that fails is repeated by its own backoff.
        self._must_look = False
        self._is_config_lost &= config is None
        self._look_at = now + self._flags.audit_interval_s
        try:
            known = self._wanted
            backend = (
                known.backend
                if known is not None and known.config == chosen
                else self._host.load_backend(chosen, self._flags.node)
            )
            underlay = self._host.find_underlay(self._flags.underlay, chosen.families)
            _refuse_pod_addresses(chosen, underlay)
            attributes = self._attributes(chosen, backend, underlay)
        except ConfigError as exc:
            self._seen_config = chosen
            self._wanted_is_bad(exc)
            return
        if is_new:
            self._check(backend, underlay)
            self._status.update(config_error=None)
        self._seen_config = chosen
        self._wanted = _Wanted(chosen, backend, underlay, attributes)

    def _wanted_is_bad(self, exc: ConfigError) -> None:
        if self._site is None:
            log.error("%s", exc)
            self._status.update(phase=CONFIG_INVALID, config_error=str(exc))
        else:
            self._report_config(str(exc))

    def _attributes(
        self, config: NetworkConfig, backend: Backend, underlay: Underlay
    ) -> LeaseAttributes:
        node = self._flags.node
        if not self._claimed_at:
            now = self._host.wall_clock().strftime("%Y-%m-%dT%H:%M:%SZ")
            self._claimed_at = self._claimed_before() or now
        backend.mtu(underlay)  # raises where the underlay has no room
        return LeaseAttributes(
            backend_type=config.backend.type,
            public=dict(underlay.public),
            backend_data=dict(backend.lease_data(underlay)),
            owner=Owner(node.id, node.name, __version__, self._claimed_at, node.boot),
        )

    def _claimed_before(self) -> str:
        """Return when this node first claimed the lease that it is about to take up again."""
        view = self.views.get()
        owners = (lease.attributes.owner for lease in view.leases.values()) if view else ()
        mine = (o for o in owners if o is not None and o.node_id == self._flags.node.id)
        return next((owner.claimed_at for owner in mine if owner.claimed_at), "")

    def _claim(self, wanted: _Wanted, view: LeaseView) -> None:
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

    def _keep(self, site: Site, wanted: _Wanted, view: LeaseView) -> None:
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
            self._ask_at = float("inf")
            if stored is None or not self._is_ours(stored, own):
                self._claim(wanted, view)
                return
            self._refuse_second(stored, view)
            is_changed = _is_changed(view, stored, own)
            own = replace(stored, attributes=own.attributes)
            self._see_end(own)
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
        if wanted.attributes != own.attributes or self._clock() >= self._renew_at or must_write:
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
        now = self._clock()
        if _shows(view, own):
            self._ask_at = float("inf")
        elif now >= self._ask_at:
            self._status.update(phase=CLAIMING)  # until the store has said whose it is
            is_lost = not _shows(self._store.view(), own)
            self._ask_at = now + _ASK_AGAIN_S
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
        self._schedule(own)
        self._end_at(self.end_of(own, asked_at))

    def end_of(self, own: Lease, asked_at: float) -> float:
        """Return when a lease that was asked for at a time ends at the earliest.

        The store cannot have begun to count before it was asked.
        """
        return float("inf") if own.is_permanent else asked_at + _OF_TTL * self._flags.lease_ttl_s

    def _end_at(self, ends_at: float) -> None:
        self._ends_at = ends_at
        self._status.update(lease_ends=ends_at)

    def _see_end(self, own: Lease) -> None:
        """Take note of a lease that became permanent, or is so no more."""
        if own.is_permanent and self._ends_at != float("inf"):
            self._end_at(float("inf"))
            self._renew_at = float("inf")
        elif not own.is_permanent and self._ends_at == float("inf"):
            # Of a store that was put back; since when it counts is not known.
            self._renew_at = now = self._clock()
            self._end_at(now)

    def _schedule(self, own: Lease) -> None:
        due_s = self._flags.lease_ttl_s - self._flags.renew_margin_s
        self._renew_at = float("inf") if own.is_permanent else self._clock() + due_s
        self._ask_at = self._clock() + _LATE_S

    def _hand_over(self, wanted: _Wanted, own: Lease) -> None:
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


def _refuse_pod_addresses(config: NetworkConfig, underlay: Underlay) -> None:
    for address in (*underlay.public.values(), *(i.ip for i in underlay.local.values())):
        whole = config.network(family_of(address))
        if whole is not None and address in whole:
            msg = (
                f"underlay {underlay.device}: address {address} lies inside the pod network "
                f"{whole}; choose another interface with --iface, or another network"
            )
            raise UnderlayError(msg)
