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
from overlay.agent.cni_config import demand, wanted_labels, wanted_mode, wanted_mtu
from overlay.agent.cni_request import (
    BAD_CONFIG,
    BAD_VARIABLE,
    CHECK_FAILED,
    EXISTS,
    IO_FAILURE,
    NO_ADDRESS,
    TRY_LATER,
    UNAVAILABLE,
    UNKNOWN_CONTAINER,
    WIRING,
    CniError,
    CniRequest,
    expected_by,
    parse_request,
    previous_result,
    valid_attachments,
    version_for_errors,
    wanted_mac,
)
from overlay.agent.cni_result import format_error, format_ipam_result, format_result
from overlay.agent.cni_witness import attached, detached
from overlay.agent.host import boot_clock
from overlay.agent.layer2 import Layer2
from overlay.agent.policy_gate import PolicyGate
from overlay.agent.status import LAPSED, Status
from overlay.agent.turns import Turns
from overlay.ipam.pool import (
    AddressOutsideError,
    AddressTakenError,
    PoolExhaustedError,
)
from overlay.kernel import pods
from overlay.kernel.base import KernelError
from overlay.kernel.netns import namespace_of, own_namespace
from overlay.kernel.pod_faults import faults
from overlay.kernel.pod_namespace import PodNamespace
from overlay.kernel.rtnl import RtnlSocket
from overlay.kernel.rtnl_pool import RtnlPool
from overlay.model.address import IPAddress
from overlay.model.attachment import BRIDGE, PTP, Attachment, AttachmentKey
from overlay.model.event import Kind
from overlay.model.subnet import Subnet

log = logging.getLogger(__name__)

Answer = tuple[int, bytes]  # exit status and standard output of the plugin


class CniService:
    """Answers the plugin. ``attachments`` is shared with whoever lists them.

    An ADD waits ``start_s`` seconds for the node's subnet: an agent that was
    started again has none yet, and not every runtime asks twice. ADD, DEL and
    whatever else makes or removes an attachment take turns for each key: a DEL
    that comes in the middle of an ADD waits for its end.
    """

    def __init__(
        self,
        status: Status,
        attachments: Attachments,
        layer2: Layer2,
        start_s: float = 5.0,
        gate: PolicyGate | None = None,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._status, self._start_s, self._clock = status, start_s, clock
        self._gate = gate
        self._home = own_namespace()
        self._attachments = attachments
        self._layer2 = layer2
        self._turns = Turns()
        self._sockets = RtnlPool()
        self._note = status.events.note_later
        self._commands: Mapping[str, Callable[[CniRequest, PodNamespace | None], bytes]] = {
            "ADD": self._add,
            "DEL": self._delete,
            "CHECK": self._check,
            "GC": self._collect,
            "STATUS": self._tell_status,
        }

    def answer(
        self, variables: Mapping[str, str], text: bytes, netns: PodNamespace | None
    ) -> Answer:
        """Carry out one request; ``netns`` is the pod's namespace, if any."""
        try:
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
        return 1, format_error(error, version_for_errors(text))

    def recover(self) -> None:
        """Undo what was cut off, and forget pods that went while nobody looked."""
        with RtnlSocket() as rtnl:
            links = pods.host_links(rtnl)
        for attachment in self._attachments.list():
            is_there = not attachment.link or attachment.link in links
            if attachment.is_complete and is_there:
                continue
            try:
                self._drop(attachment.key, attachment.link, "it went while the agent was away")
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
        links, held, strays = self._look()
        return {
            "attachments": [{**a.to_json(), "live": not a.link or a.link in links} for a in held],
            "strays": strays,
            "ranges": self._ranges(),
        }

    def _look(self) -> tuple[set[str], list[Attachment], list[str]]:
        """Return the pods' links, the attachments, and the links that none is known for."""
        with RtnlSocket() as rtnl:
            links = set(pods.host_links(rtnl))
        # Links first: an attachment is known before its link is made.
        held = self._attachments.list()
        return links, held, sorted(links - {attachment.link for attachment in held})

    def _ranges(self) -> list[dict[str, Any]]:
        site = self._status.get().site
        networks = site.own.subnet.networks() if site is not None else ()
        usages = [(network, self._attachments.usage(network)) for network in networks]
        return [
            {"network": str(network), "used": used, "count": count}
            for network, (used, count) in usages
        ]

    def _release(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Detach and release every interface of a container, or every link nobody knows."""
        if given.get("strays") is True:
            _, _, strays = self._look()
            for name in strays:
                pods.detach(name)
                log.info("link %s, of no known attachment, is removed by hand", name)
            return {"released": [], "links": strays}
        container = given.get("container")
        found = [a for a in self._attachments.list() if a.key.container == container]
        for attachment in found:
            with self._turns.of(attachment.key):
                self._drop(attachment.key, attachment.link, "released by hand")
            log.info("%s is released by hand", attachment.key)
        return {"released": [a.to_json() for a in found], "links": []}

    def _add(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        subnet, mtu = self._ready(wait_s=self._start_s)
        with self._turns.of(request.key):
            return self._attach(request, netns, subnet, mtu)

    def _attach(
        self, request: CniRequest, netns: PodNamespace | None, subnet: Subnet, mtu: int
    ) -> bytes:
        previous_result(request.config)  # before anything is made
        if request.is_ipam:
            allocated = self._allocate(request, subnet, mtu, link="")
            try:
                self._isolate(allocated)
            except KernelError:
                self._undo(allocated)
                raise
            found = self._attachments.complete(allocated)
            self._note(Kind.POD_ATTACHED, lambda: attached(found))
            return format_ipam_result(request, found, subnet)
        mode = wanted_mode(request)
        if netns is None:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} could not be opened")
        try:
            if namespace_of(netns.descriptor) == self._home:
                raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} is the host's own")
        except KernelError as exc:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} is {exc}") from exc
        link = pods.link_name(request.key)
        attachment = self._allocate(request, subnet, mtu, link=link, mode=mode)
        try:
            self._isolate(attachment)
            with self._sockets.lent() as rtnl:
                bridge = self._layer2.prepare(rtnl, subnet, mtu) if mode == BRIDGE else None
                own, *beside = (
                    pods.pod_link(each, subnet) for each in (attachment, *self._beside(attachment))
                )
                defaults = pods.attach(rtnl, netns, own, beside, bridge)
                if mode != BRIDGE:
                    self._layer2.follow(rtnl)
        except KernelError:
            self._undo(attachment)
            raise
        try:
            attachment = self._attachments.complete(attachment)
        except (OSError, AttachmentGoneError):
            pods.detach(attachment.link)
            self._undo(attachment)
            raise
        self._note(Kind.POD_ATTACHED, lambda: attached(attachment))
        return format_result(request, attachment, subnet, defaults)

    def _isolate(self, attachment: Attachment) -> None:
        """Wait until policies are in force for what does not send yet. Raises KernelError."""
        if self._gate is not None:
            self._gate.admit(attachment)

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

    def _allocate(
        self, request: CniRequest, subnet: Subnet, mtu: int, link: str, mode: str = PTP
    ) -> Attachment:
        mac, labels = wanted_mac(request), wanted_labels(request)

        def make(addresses: tuple[IPAddress, ...]) -> Attachment:
            return Attachment(
                key=request.key,
                sandbox=request.netns,
                addresses=addresses,
                link=link,
                mac=mac or (pods.link_mac(link, "pod") if link else None),
                mtu=wanted_mtu(request, mtu),
                arguments=dict(request.arguments),
                mode=mode,
                labels=labels,
            )

        wanted = demand(request, subnet)
        try:
            return self._attachments.add(subnet, wanted, request.key, make)
        except (PoolExhaustedError, AddressTakenError):
            # Links without a record may have gone meanwhile: nobody is told of that.
            self._attachments.settle(_addresses_in_use)
            return self._attachments.add(subnet, wanted, request.key, make)

    def _undo(self, attachment: Attachment) -> None:
        self._attachments.undo(attachment)
        self._follow()

    def _drop(self, key: AttachmentKey, link: str, why: str) -> None:
        """Remove link and record, in the turn of ``key``. Repeating it is safe."""
        if link:
            pods.detach(link)
        released = self._attachments.release(key)
        if released is not None:  # a DEL may come for what never was
            self._note(Kind.POD_DETACHED, lambda: detached(released, why))
        self._follow()

    def _follow(self) -> None:
        """Take what is gone off all rules; what fails is done by the next audit."""
        if self._gate is not None:
            self._gate.wake()
        if not self._layer2.is_there:
            return
        try:
            with self._sockets.lent() as rtnl:
                self._layer2.follow(rtnl)
        except KernelError as exc:
            log.warning("%s", exc)

    def _delete(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        del netns  # the host's end is found without it
        link = "" if request.is_ipam else pods.link_name(request.key)
        with self._turns.of(request.key):
            self._drop(request.key, link, "the runtime says so")
        return b""

    def _check(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        if not previous_result(request.config):
            raise CniError(BAD_CONFIG, '"prevResult" is missing', "CHECK judges by it")
        attachment = self._attachments.get(request.key)
        if attachment is None:
            raise CniError(UNKNOWN_CONTAINER, f"{request.key} is not attached")
        if request.is_ipam:
            return b""
        expected = expected_by(request, is_bridged=wanted_mode(request) == BRIDGE)
        if netns is None:
            raise CniError(BAD_VARIABLE, f"CNI_NETNS {request.netns!r} could not be opened")
        with self._sockets.lent() as rtnl:
            found = faults(rtnl, netns, expected)
        if found:
            raise CniError(CHECK_FAILED, "; ".join(found))
        return b""

    def _collect(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        del netns
        kept = valid_attachments(request.config)
        if kept is None:
            return b""
        for attachment in self._attachments.list(request.key.network):
            key = attachment.key
            if (key.container, key.interface) in kept:
                continue
            with self._turns.of(key):
                # One that changed meanwhile was being attached: the runtime's
                # list is older than it.
                if self._attachments.get(key) is attachment:
                    self._drop(key, attachment.link, "the runtime does not know it any more")
                    log.info("%s is collected", key)
        return b""

    def _tell_status(self, request: CniRequest, netns: PodNamespace | None) -> bytes:
        del request, netns
        subnet, _ = self._ready(UNAVAILABLE)
        for network in subnet.networks():
            used, count = self._attachments.usage(network)
            if used >= count:
                raise CniError(UNAVAILABLE, str(PoolExhaustedError(network, count)))
        return b""

    def _ready(self, code: int = TRY_LATER, wait_s: float = 0.0) -> tuple[Subnet, int]:
        snapshot = self._status.wait_for(lambda it: it.subnet_at(self._clock()) is not None, wait_s)
        now = self._clock()
        subnet = snapshot.subnet_at(now)
        if subnet is None:
            known = snapshot.phase if now < snapshot.lease_ends else LAPSED
            reason = "; ".join(snapshot.reasons) or known
            raise CniError(code, f"this node has no subnet: {reason}")
        return subnet, snapshot.mtu


def _addresses_in_use() -> Mapping[str, Sequence[IPAddress]]:
    with RtnlSocket() as rtnl:
        return pods.addresses_in_use(rtnl)
