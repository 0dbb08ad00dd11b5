"""Answering another node what became of a packet here: ``/ask/explain``.

Only for a packet between this node's pods or addresses and those of another
node with a lease, and with words of fixed lists (``overlay.trace.far``): an
answer tells what such a packet would find out, and nothing of the host.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from overlay.agent.status import Snapshot, Status
from overlay.model.address import IPAddress, family_of
from overlay.model.attachment import Attachment
from overlay.model.errors import OverlayError, UsageError
from overlay.model.lease import Lease

if TYPE_CHECKING:
    from overlay.trace.holders import Knowledge

_PROTOCOLS: Final = ("icmp", "tcp", "udp")
_A_SECOND: Final = 4.0  # answers; each lists the ruleset
_AT_ONCE: Final = 8


class ExplainCall:
    """``attachments`` are the pods of this node. Any thread may ask; one is answered at a time."""

    def __init__(
        self,
        status: Status,
        attachments: Callable[[], Sequence[Attachment]],
        clock: Callable[[], float],
    ) -> None:
        self._status = status
        self._attachments = attachments
        self._lock = threading.Lock()
        self._pace = Pace(_A_SECOND, _AT_ONCE, clock)

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return this node's half. Raises OverlayError for what it does not answer."""
        # Hardly ever asked, and never before pods run: it need not be in memory for that.
        from overlay.kernel.asked import Ground
        from overlay.kernel.rtnl import RtnlSocket
        from overlay.kernel.survey import Question, survey
        from overlay.trace.far import told

        question = Question(
            str(_address(given, "source")),
            str(_address(given, "destination")),
            *_service(given),
        )
        knowledge = known(
            self._status.get(),
            self._attachments(),
            (_address(given, "source"), _address(given, "destination")),
        )
        with self._lock:
            self._pace.take()
            with closing(RtnlSocket()) as rtnl:
                return told(survey(Ground(rtnl), knowledge, question))


class Pace:
    """So many a second, and ``at_once`` after a silence. Belongs to one thread at a time."""

    def __init__(self, a_second: float, at_once: int, clock: Callable[[], float]) -> None:
        self._a_second = a_second
        self._at_once = at_once
        self._clock = clock
        self._left = float(at_once)
        self._counted_at = clock()

    def take(self) -> None:
        """Count one. Raises OverlayError for one too many."""
        now = self._clock()
        earned = self._a_second * (now - self._counted_at)
        self._left = min(self._at_once, self._left + earned)
        self._counted_at = now
        if self._left < 1:
            msg = "asked too often; once more in a second"
            raise OverlayError(msg)
        self._left -= 1


def known(
    snapshot: Snapshot, attachments: Iterable[Attachment], addresses: tuple[IPAddress, IPAddress]
) -> "Knowledge":
    """Return what the leases say of both addresses. Raises UsageError for others than a node's.

    One must be of this node's lease and one of another's, so that nobody is
    told which addresses a host has beside those that the store names.
    """
    from overlay.trace.holders import Knowledge, lease_holder

    site, view = snapshot.site, snapshot.view
    if site is None or view is None:
        msg = "this node holds no lease yet"
        raise UsageError(msg)
    held = snapshot.held.leases if snapshot.held is not None else {}
    others = [
        lease
        for key, lease in {**view.leases, **held}.items()
        if key != site.own.subnet.key and not lease.is_vacant
    ]
    is_own = [_has(site.own, address) for address in addresses]
    theirs = [lease for lease in others if any(_has(lease, address) for address in addresses)]
    is_theirs = [any(_has(lease, address) for lease in theirs) for address in addresses]
    if not (is_own[0] and is_theirs[1]) and not (is_own[1] and is_theirs[0]):
        msg = "one address must be of this node's lease, one of another's"
        raise UsageError(msg)
    return Knowledge(lease_holder(site.own), tuple(map(lease_holder, theirs)), tuple(attachments))


def _has(lease: Lease, address: IPAddress) -> bool:
    network = lease.subnet.network(family_of(address))
    is_pod = network is not None and address in network
    return is_pod or address in lease.attributes.public.values()


def _address(given: Mapping[str, Any], name: str) -> IPAddress:
    try:
        return ip_address(str(given.get(name)))
    except ValueError:
        msg = f"{name}: an address is wanted"
        raise UsageError(msg) from None


def _service(given: Mapping[str, Any]) -> tuple[str, int | None]:
    protocol, port = given.get("protocol"), given.get("port")
    if not isinstance(protocol, str) or protocol not in _PROTOCOLS:
        msg = f"protocol: one of {', '.join(_PROTOCOLS)}"
        raise UsageError(msg)
    if port is not None and (type(port) is not int or not 0 < port < 65536):
        msg = "port: 1 to 65535"
        raise UsageError(msg)
    return protocol, port
