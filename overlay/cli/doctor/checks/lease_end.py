"""Whether leases are renewed in time: one that is late is lost when it ends."""

from collections.abc import Iterator
from shlex import quote
from typing import Final

from overlay.cli.doctor.facts import Facts
from overlay.cli.doctor.verdicts import Check, Fine, Scope, Verdict, warning
from overlay.model.errors import OverlayError

_MARGIN_S: Final = 3600  # --subnet-lease-renew-margin, unless the agent says another one
_NEAR_PART: Final = 48  # of a lease whose node may have another margin
_MOST_ASKED: Final = 64  # one request a lease


def _run(facts: Facts) -> Iterator[Verdict]:
    own = facts.own_lease()
    leases = [lease for lease in facts.view().leases.values() if not lease.is_permanent]
    leases.sort(key=lambda lease: lease is not own)
    asked = leases[:_MOST_ASKED]
    store = facts.store()
    # Renewals begin with the margin; half of it later they have failed.
    margin_s = _margin_s(facts)
    near_s = (margin_s or _MARGIN_S) / 2
    for lease, seconds in zip(asked, store.times_to_live(asked), strict=True):
        if seconds is None or seconds >= near_s:
            continue
        is_known = lease is own and margin_s is not None
        if not is_known and seconds >= (store.granted_ttl(lease) or 0) / _NEAR_PART:
            continue
        whose = "this node's lease" if lease is own else f"the lease of {lease.node},"
        reason = f"{whose} {lease.subnet} ends in {seconds} s and was not renewed"
        where = "" if lease is own else f"ssh {quote(lease.node)} "
        yield warning(reason, f"{where}systemctl restart overlayd")
    yield Fine(f"{len(asked)} of {len(leases)} leases asked for")


def _margin_s(facts: Facts) -> int | None:
    """Return how long before its end the agent renews this node's lease, in seconds.

    None where no agent says it.
    """
    try:
        said = facts.agent().get("renew_margin_s")
    except OverlayError:
        said = None
    return said if isinstance(said, int) else None


CHECK: Final = Check("lease-end", "how long leases still last", _run, Scope.STORE)
