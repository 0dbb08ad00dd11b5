"""The node's bridge and its ports' rules, as long as a pod asks for layer 2.

What is wanted follows from the attachments alone: the bridge is there while
one of them is on it, each port has its rules before its link is there, and the
routed pods are answered for. Made by the first ADD, kept by the reconciler.
"""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_interface

from overlay.agent.attachments import Attachments
from overlay.kernel import bridge
from overlay.kernel.base import KernelError
from overlay.kernel.bridge import Bridge
from overlay.kernel.bridge_diff import differences
from overlay.kernel.bridge_ports import hold_ports, hold_proxies
from overlay.kernel.links import list_links
from overlay.kernel.nft import NftError
from overlay.kernel.nft_generation import OwnWrites
from overlay.kernel.nft_ports import PortTable
from overlay.kernel.notices import Change
from overlay.kernel.pods import link_mac
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import IPAddress
from overlay.model.attachment import BRIDGE, Attachment
from overlay.model.errors import OverlayError
from overlay.model.node import POD_BRIDGE
from overlay.model.subnet import Subnet
from overlay.policy.ports import Port

log = logging.getLogger(__name__)


class Layer2:
    """For any thread: ADD and DEL bring it in step, the reconciler audits it.

    ``own`` is shared with what else of the agent writes rules.
    """

    def __init__(self, attachments: Attachments, own: OwnWrites | None = None) -> None:
        self._attachments = attachments
        self._lock = threading.Lock()
        self._table = PortTable(own=own if own is not None else OwnWrites())
        self._is_there: bool | None = None  # unknown until the first look

    @property
    def is_there(self) -> bool:
        """Return whether there is a bridge to keep in step, as far as is known."""
        return self._is_there is True

    def prepare(self, rtnl: RtnlSocket, subnet: Subnet, mtu: int) -> int:
        """Make what an attachment of mode ``bridge`` stands on; it is known already.

        Return the bridge's index. Raises KernelError.
        """
        with self._lock, _as_kernel_error():
            index, changes = bridge.ensure(rtnl, _wanted(subnet, mtu))
            _tell(changes)
            self._is_there = True
            held = self._attachments.list()
            self._table.hold(_ports(held))
            hold_proxies(rtnl, index, _routed(held))
        return index

    def follow(self, rtnl: RtnlSocket) -> None:
        """Bring rules and proxy entries in step with the attachments, where there is a bridge.

        Nothing is done, and nothing asked, where none was needed so far.
        """
        if not self.is_there:
            return
        with self._lock, _as_kernel_error():
            link = bridge.find(rtnl)
            held = self._attachments.list()
            self._table.hold(_ports(held))
            if link is not None:
                hold_proxies(rtnl, link.index, _routed(held))

    def is_lost(self, notice: Change) -> bool:
        """Return whether the kernel tells that the bridge, or an address of it, is gone."""
        is_ours = notice.key[0] in {"link", "addr"} and notice.key[1] == POD_BRIDGE
        return is_ours and notice.verb == "del" and self.is_there

    def audit(self, subnet: Subnet, mtu: int) -> tuple[str, ...]:
        """Put right whatever differs, or remove all of it where no pod needs it.

        Return what could not be done. Repeating it is safe.
        """
        with self._lock:
            try:
                with RtnlSocket() as rtnl:
                    self._audit(rtnl, subnet, mtu)
            except OverlayError as exc:
                return (str(exc),)
        return ()

    def differences(self, subnet: Subnet, mtu: int) -> list[str]:
        """Return what an audit would change, in ``ip`` words. Raises OverlayError."""
        held = self._attachments.list()
        names = [a.link for a in held if a.mode == BRIDGE]
        wanted = _wanted(subnet, mtu) if names else None
        try:
            with RtnlSocket() as rtnl:
                return differences(rtnl, wanted, names, _routed(held))
        except OSError as exc:  # a setting that went with its link
            msg = f"{POD_BRIDGE}: {exc}"
            raise KernelError(msg) from exc

    def audit_rules(self) -> tuple[str, ...]:
        """Put the rules right alone: for when somebody changed rules. Return what failed."""
        with self._lock:
            if not self._is_there:
                return ()
            try:
                self._audit_rules(self._attachments.list())
            except OverlayError as exc:
                return (str(exc),)
        return ()

    def _audit(self, rtnl: RtnlSocket, subnet: Subnet, mtu: int) -> None:
        held = self._attachments.list()
        on_bridge = [a for a in held if a.mode == BRIDGE]
        if not on_bridge:
            if self._is_there is not False and (bridge.remove(rtnl) or self._is_there):
                self._table.remove()
                log.info("link %s removed: no pod needs it", POD_BRIDGE)
            self._is_there = False
            return
        self._audit_rules(held)
        index, changes = bridge.ensure(rtnl, _wanted(subnet, mtu))
        names = [a.link for a in on_bridge]
        changes += hold_ports(rtnl, index, names, list_links(rtnl))
        hold_proxies(rtnl, index, _routed(held))
        if self._is_there:
            for change in changes:
                log.warning("put right: %s", change)
        self._is_there = True

    def _audit_rules(self, held: Iterable[Attachment]) -> None:
        if self._table.audit(_ports(held)):
            log.warning("the table bridge overlay was changed by somebody else; written anew")


def _wanted(subnet: Subnet, mtu: int) -> Bridge:
    gateways = [ip_interface((n[1], n.prefixlen)) for n in subnet.networks()]
    return Bridge(mtu, tuple(gateways))


def _ports(held: Iterable[Attachment]) -> list[Port]:
    return [
        Port(a.link, a.mac or link_mac(a.link, "pod"), a.addresses)
        for a in held
        if a.mode == BRIDGE
    ]


def _routed(held: Iterable[Attachment]) -> list[IPAddress]:
    """Return the addresses of the pods that are reached by a route and not on the bridge."""
    return [address for a in held if a.mode != BRIDGE and a.link for address in a.addresses]


def _tell(changes: Iterable[str]) -> None:
    for change in changes:
        log.info("%s", change)


@contextmanager
def _as_kernel_error() -> Iterator[None]:
    try:
        yield
    except (NftError, OSError) as exc:
        raise KernelError(str(exc)) from exc
