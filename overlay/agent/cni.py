"""ADD, DEL, CHECK, GC and STATUS, carried out: addresses from the lease, a pair in the pod.

A request that is cut off leaves a record and perhaps a pair; DEL, GC or the
next start removes both. Each runs in the thread of its client.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from overlay.agent.attachments import (
    AttachmentExistsError,
    AttachmentGoneError,
    Attachments,
    AttachmentUnreadError,
)
from overlay.agent.cni_request import (
    BAD_CONFIG,
    BAD_VARIABLE,
    CHECK_FAILED,
    EXISTS,
    IO_FAILURE,
    LATEST,
    NO_ADDRESS,
    TRY_LATER,
    UNAVAILABLE,
    UNKNOWN_CONTAINER,
    UNSUPPORTED,
    WIRING,
    CniError,
    CniRequest,
    expected_by,
    parse_request,
    previous_result,
    valid_attachments,
    version_for_errors,
    wanted_addresses,
    wanted_mac,
)
from overlay.agent.cni_result import format_error, format_ipam_result, format_result
from overlay.agent.status import CLAIMING, Snapshot, Status
from overlay.ipam.pool import (
    AddressOutsideError,
    AddressRange,
    AddressTakenError,
    PoolExhaustedError,
)
from overlay.kernel import pods
from overlay.kernel.base import KernelError
from overlay.kernel.netns import namespace_of, own_namespace
from overlay.kernel.rtnl import RtnlSocket
from overlay.model.address import IPAddress
from overlay.model.attachment import Attachment
from overlay.model.errors import shown
from overlay.model.subnet import Subnet

log = logging.getLogger(__name__)

Answer = tuple[int, bytes]  # exit status and standard output of the plugin


class CniService:
    """Answers the plugin. ``attachments`` is shared with whoever lists them.

    An ADD waits ``start_s`` seconds for the node's subnet: an agent that was
    started again has none yet, and not every runtime asks twice.
    """

    def __init__(self, status: Status, attachments: Attachments, start_s: float = 5.0) -> None:
        self._status, self._start_s = status, start_s
        self._attachments = attachments
        self._commands: Mapping[str, Callable[[CniRequest, int | None], bytes]] = {
            "ADD": self._add,
            "DEL": self._delete,
            "CHECK": self._check,
            "GC": self._collect,
            "STATUS": self._tell_status,
        }

    def answer(self, variables: Mapping[str, str], text: bytes, netns: int | None) -> Answer:
        """Carry out one request; ``netns`` is a descriptor of the pod's namespace, if any."""
        version = LATEST
        try:
            version = version_for_errors(text)
            request = parse_request(variables, text)
            return 0, self._commands[request.command](request, netns)
        except CniError as exc:
            error = exc
        except AttachmentExistsError as exc:
            error = CniError(EXISTS, str(exc), "delete it first; the first one is kept")
        except AttachmentUnreadError as exc:
            error = CniError(EXISTS, str(exc), "delete it first")
        except AttachmentGoneError as exc:
            error = CniError(TRY_LATER, str(exc))
        except PoolExhaustedError as exc:
            error = CniError(NO_ADDRESS, str(exc))
        except (AddressTakenError, AddressOutsideError) as exc:
            error = CniError(BAD_CONFIG, str(exc))
        except KernelError as exc:
            error = CniError(WIRING, str(exc))
        except OSError as exc:
            error = CniError(IO_FAILURE, f"attachment cannot be written: {exc.strerror}")
        log.warning("CNI %s: %s", variables.get("CNI_COMMAND", "?"), error)
        return 1, format_error(error, version)

    def recover(self) -> None:
        """Undo what was cut off, and forget pods that went while nobody looked."""
        with RtnlSocket() as rtnl:
            links = pods.host_links(rtnl)
        for attachment in self._attachments.list():
            is_there = not attachment.link or attachment.link in links
            if attachment.is_complete and is_there:
                continue
            if attachment.link:
                pods.detach(attachment.link)
            try:
                self._attachments.release(attachment.key)
            except OSError as exc:
                log.warning("%s is gone, its record stays: %s", attachment.key, exc)
                continue
            log.info("%s is gone; its addresses are free again", attachment.key)
        self._attachments.settle(_addresses_in_use)

    def stranded(self) -> Sequence[Attachment]:
        """Return the pods that have an address which this node's subnet has not."""
        site = self._status.get().site
        return self._attachments.outside(site.own.subnet) if site is not None else ()

    def calls(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """Return what ``overlayctl ipam`` asks over the node's socket."""
        return {"ipam": self._list, "ipam-release": self._release}

    def _list(self, given: Mapping[str, Any]) -> dict[str, Any]:
        del given
        with RtnlSocket() as rtnl:
            links = pods.host_links(rtnl)
        held = self._attachments.list()
        known = {attachment.link for attachment in held}
        return {
            "attachments": [{**a.to_json(), "live": not a.link or a.link in links} for a in held],
            "strays": sorted(name for name in links if name not in known),
            "ranges": self._ranges(held),
        }

    def _ranges(self, held: list[Attachment]) -> list[dict[str, Any]]:
        site = self._status.get().site
        spans = [AddressRange(n) for n in site.own.subnet.networks()] if site is not None else []
        used = [address for attachment in held for address in attachment.addresses]
        used += self._attachments.held()
        return [
            {
                "network": str(span.network),
                "used": sum(address in span for address in used),
                "count": span.count,
            }
            for span in spans
        ]

    def _release(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Detach and release every interface of a container."""
        container = given.get("container")
        found = [a for a in self._attachments.list() if a.key.container == container]
        for attachment in found:
            if attachment.link:
                pods.detach(attachment.link)
            self._attachments.release(attachment.key)
            log.info("%s is released by hand", attachment.key)
        return {"released": [a.to_json() for a in found]}

    def _add(self, request: CniRequest, netns: int | None) -> bytes:
        subnet, mtu = self._ready(wait_s=self._start_s)
        previous_result(request.config)  # before anything is made
        if request.is_ipam:
            found = self._attachments.complete(self._allocate(request, subnet, mtu, link=""))
            return format_ipam_result(request, found, subnet)
        if request.config.get("mode", "ptp") != "ptp":
            raise CniError(
                UNSUPPORTED,
                f'"mode" {shown(request.config["mode"])} is not in this version',
                'use "ptp"',
            )
        if netns is None:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} could not be opened")
        try:
            if namespace_of(netns) == own_namespace():
                raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} is the host's own")
        except KernelError as exc:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} is {exc}") from exc
        attachment = self._allocate(request, subnet, mtu, link=pods.link_name(request.key))
        try:
            with RtnlSocket() as rtnl:
                beside = [pods.pod_link(other) for other in self._beside(attachment)]
                defaults = pods.attach(rtnl, netns, pods.pod_link(attachment), beside)
        except KernelError:
            self._attachments.undo(attachment)
            raise
        try:
            attachment = self._attachments.complete(attachment)
        except (OSError, AttachmentGoneError):
            pods.detach(attachment.link)
            self._attachments.undo(attachment)
            raise
        host_mac = pods.link_mac(attachment.link, "host")
        return format_result(request, attachment, host_mac, defaults)

    def _beside(self, attachment: Attachment) -> list[Attachment]:
        """Return the other interfaces that the same pod has from us, on whatever network."""
        return [
            other
            for other in self._attachments.list()
            if other.key.container == attachment.key.container
            and other.sandbox == attachment.sandbox
            and other.key != attachment.key
            and other.link
        ]

    def _allocate(self, request: CniRequest, subnet: Subnet, mtu: int, link: str) -> Attachment:
        mac = wanted_mac(request)

        def make(addresses: tuple[IPAddress, ...]) -> Attachment:
            return Attachment(
                key=request.key,
                sandbox=request.netns,
                addresses=addresses,
                link=link,
                mac=mac or (pods.link_mac(link, "pod") if link else None),
                mtu=_mtu(request, mtu),
                arguments=dict(request.arguments),
            )

        wanted = wanted_addresses(request)
        try:
            return self._attachments.add(subnet, wanted, request.key, make)
        except (PoolExhaustedError, AddressTakenError):
            # Links without a record may have gone meanwhile: nobody is told of that.
            self._attachments.settle(_addresses_in_use)
            return self._attachments.add(subnet, wanted, request.key, make)

    def _delete(self, request: CniRequest, netns: int | None) -> bytes:
        del netns  # the host's end is found without it
        if not request.is_ipam:
            pods.detach(pods.link_name(request.key))
        self._attachments.release(request.key)
        return b""

    def _check(self, request: CniRequest, netns: int | None) -> bytes:
        if not previous_result(request.config):
            raise CniError(BAD_CONFIG, '"prevResult" is missing', "CHECK judges by it")
        attachment = self._attachments.get(request.key)
        if attachment is None:
            raise CniError(UNKNOWN_CONTAINER, f"{request.key} is not attached")
        if request.is_ipam:
            return b""
        if netns is None:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} could not be opened")
        with RtnlSocket() as rtnl:
            found = pods.faults(rtnl, netns, expected_by(request))
        if found:
            raise CniError(CHECK_FAILED, "; ".join(found))
        return b""

    def _collect(self, request: CniRequest, netns: int | None) -> bytes:
        del netns
        kept = valid_attachments(request.config)
        if kept is None:
            return b""
        for attachment in self._attachments.list(request.key.network):
            key = attachment.key
            if (key.container, key.interface) not in kept:
                if attachment.link:
                    pods.detach(attachment.link)
                self._attachments.release(key)
                log.info("%s is collected", key)
        return b""

    def _tell_status(self, request: CniRequest, netns: int | None) -> bytes:
        del request, netns
        subnet, _ = self._ready(UNAVAILABLE)
        used = [address for a in self._attachments.list() for address in a.addresses]
        used += self._attachments.held()
        for network in subnet.networks():
            span = AddressRange(network)
            if sum(address in span for address in used) >= span.count:
                raise CniError(UNAVAILABLE, str(PoolExhaustedError(network, span.count)))
        return b""

    def _ready(self, code: int = TRY_LATER, wait_s: float = 0.0) -> tuple[Subnet, int]:
        snapshot = self._status.wait_for(_is_settled, wait_s)
        if snapshot.site is None or not _is_settled(snapshot):
            reason = "; ".join(snapshot.reasons) or snapshot.phase
            raise CniError(code, f"this node has no subnet: {reason}")
        return snapshot.site.own.subnet, snapshot.mtu


def _is_settled(snapshot: Snapshot) -> bool:
    # A node that is claiming may be about to lose its subnet to another.
    return snapshot.site is not None and snapshot.mtu != 0 and snapshot.phase != CLAIMING


def _addresses_in_use() -> Mapping[str, Sequence[IPAddress]]:
    with RtnlSocket() as rtnl:
        return pods.addresses_in_use(rtnl)


def _mtu(request: CniRequest, mtu: int) -> int:
    wanted: Any = request.config.get("mtu", 0)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted <= 65535:
        raise CniError(BAD_CONFIG, f'"mtu" {shown(wanted)} is not a size in bytes')
    if wanted > mtu:
        raise CniError(BAD_CONFIG, f'"mtu" {wanted}: the fabric carries {mtu} bytes; lower it')
    return wanted or mtu
